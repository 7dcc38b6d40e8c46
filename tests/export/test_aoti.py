"""A package of AOTInductor, run from Python and, without it, by examples/cpp."""

import shutil
import subprocess
import sys
from pathlib import Path

import frcnn_ops._C
import numpy as np
import pytest
import torch
from PIL import Image
from small_export import IMAGES

from frcnn import runtime
from frcnn.export.export import export
from frcnn.export.info import ExportError
from frcnn.inference.fast_detector import compare_detections
from frcnn.structures import Detections

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp"


def test_torch_2_10_is_refused(trained, tmp_path, monkeypatch):
    """Its packages fail as they run: normalize_images is asked for Double."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.0+cpu"))
    with pytest.raises(ExportError, match=r"AOTInductor of torch 2\.10\.0\+cpu .* use a newer torch"):
        export(trained, tmp_path / "tiny.aoti.pt2", IMAGES, format="aoti")


@pytest.mark.skipif(torch.__version__ < "2.11", reason="AOTInductor of torch 2.10 is refused")
def test_a_package_detects_in_python_and_in_cpp(trained, tmp_path):
    package = tmp_path / "tiny.aoti.pt2"
    certificate = export(trained, package, IMAGES, format="aoti")
    assert certificate.passed and certificate.matched >= 0.99 and certificate.detections[0] > 60
    detector = runtime.load(package, run_code=True)
    jpeg = min(IMAGES.iterdir())
    pixels = np.asarray(Image.open(jpeg))
    found = detector.predict(pixels, rgb=True)
    assert compare_detections(found, trained.predict(pixels, rgb=True)).matched == 1

    prefix = torch.utils.cmake_prefix_path
    build = tmp_path / "build"
    for command in (
        [cmake(), "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"],
        [cmake(), "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    Image.fromarray(pixels).save(tmp_path / "0.ppm")
    program = [build / "detect", package, frcnn_ops._C.__file__]
    printed = subprocess.run([*program, tmp_path / "0.ppm"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    rows = torch.tensor([[float(word) for word in line.split()] for line in printed.stdout.splitlines()])
    in_cpp = Detections(rows[:, 2:], rows[:, 1], rows[:, 0].long())
    agreement = compare_detections(in_cpp, found)
    assert agreement.matched == 1 and agreement.max_box_drift < 0.01

    Image.fromarray(np.zeros((300, 100, 3), np.uint8)).save(tmp_path / "large.ppm")
    for image, says in ((tmp_path / "large.ppm", "resize it to fit 256x320"), (jpeg, "not a binary PPM")):
        refused = subprocess.run([*program, image], capture_output=True, text=True)
        assert refused.returncode == 1 and says in refused.stderr


def cmake() -> str:
    """That of the tests' environment, which need not be on the path."""
    found = shutil.which("cmake", path=Path(sys.executable).parent) or shutil.which("cmake")
    assert found, "pip install cmake"
    return found
