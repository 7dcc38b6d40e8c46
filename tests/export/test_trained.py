"""A trained model on real images: every format finds what the model finds, one image or several at a time.

AOTInductor's package of it is in test_aoti.py.
"""

import pytest
from small_export import IMAGES

from frcnn import runtime
from frcnn.export.export import export
from frcnn.inference.fast_detector import compare_detections

pytest.importorskip("nncf", reason="what exports need is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_a_trained_one(trained):
    """Every image has some red blood cells, most of them found with confidence."""
    for image in sorted(IMAGES.iterdir()):
        found = trained.predict(image).above(0.5)
        assert 4 <= sum(one.name == "RBC" for one in found) <= 40


@pytest.mark.parametrize(
    "name, options, matched",
    [
        ("x.pt2", {"format": "torch", "dynamic": True}, 0.99),
        ("x.onnx", {"format": "onnx", "batch": 2}, 0.99),
        ("x.xml", {"format": "openvino", "batch": 4}, 0.99),
        ("x.xml", {"format": "openvino", "precision": "int8"}, 0.85),
    ],
)
def test_a_file_finds_what_the_model_finds(trained, tmp_path, name, options, matched):
    certificate = export(trained, tmp_path / name, IMAGES, **options)
    assert certificate.passed and certificate.matched >= matched
    assert len(certificate.images) == 6 and certificate.detections[0] > 60
    images = sorted(IMAGES.iterdir())
    together = runtime.load(tmp_path / name, run_code=True).predict(images)
    assert compare_detections(together, trained.predict(images)).matched >= matched - 0.01
