"""Files for other runtimes give the model's numbers, or are not there."""

import json
import os
import zipfile
from dataclasses import replace

import pytest
import torch
from command import run
from confident_detector import SMALL, confident
from small_export import DATA, SIZE

from frcnn import runtime
from frcnn.checked import OptionError
from frcnn.config import RoIHeadConfig
from frcnn.export.certificate import beside
from frcnn.export.export import export, verify_file
from frcnn.export.info import ExportError
from frcnn.inference.fast_detector import compare_detections
from frcnn.zoo.reference_case import CASES
from frcnn.zoo.verify import verify_case

pytest.importorskip("nncf", reason="what exports need is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread", "slim")

ONES = [
    ("one.onnx", {"format": "onnx"}),
    ("many.onnx", {"format": "onnx", "dynamic": True}),
    ("three.xml", {"format": "openvino", "batch": 3}),
    ("one.pt2", {"format": "torch"}),
    ("many.pt2", {"format": "torch", "dynamic": True}),
    ("half.trt.onnx", {"format": "tensorrt", "precision": "float16"}),
]


@pytest.mark.parametrize("name, options", ONES)
def test_a_certified_file_predicts_as_the_model(model, images, exported, name, options):
    path, certificate = exported(name, **options)
    assert certificate.passed and certificate.detections[0] > 20
    assert json.loads(beside(path).read_text())["passed"]
    detector = runtime.load(path, run_code=path.suffix == ".pt2")
    assert (detector.class_names, detector.info.weights) == (tuple("abc"), model.fingerprint())
    wide = [images / "0.png", images / "2.png"]
    found, expected = detector.predict(wide), model.predict(wide)
    agreement = compare_detections(found, expected)
    if certificate.info.precision == "float32":
        assert certificate.matched >= 0.99
        assert agreement.matched >= 0.99 and agreement.max_box_drift < 0.05
    else:
        assert agreement.matched > 0.7
    upright = detector.predict(images / "1.png")
    if certificate.info.dynamic:
        assert compare_detections(upright, model.predict(images / "1.png")).matched >= 0.99
    assert (upright.boxes <= torch.tensor([120, 150, 120, 150]) + 1e-3).all()


def test_a_dynamic_file_takes_shapes_that_it_was_not_traced_with(model, exported):
    detector = runtime.load(exported("many.onnx", format="onnx", dynamic=True)[0])
    generator = torch.Generator().manual_seed(0)
    for height, width, batch in ((192, 160, 3), (320, 416, 1)):
        pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
        sizes = torch.tensor([[height, width]] * batch, dtype=torch.float32)
        found = detector._run(pixels, sizes, torch.ones(batch, 2), details=False)
        expected = model._run(pixels, sizes, torch.ones(batch, 2), details=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    with pytest.raises(OptionError, match="128 to 4096 pixels, not 64x96"):
        detector._run(pixels[:, :64, :96], sizes, torch.ones(1, 2), details=False)
    small = torch.randint(0, 256, (20, 90, 3), dtype=torch.uint8, generator=generator)
    assert detector._shaped(detector.prepare(small, (64, 64))).padded_size == (128, 128)


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, backbone=replace(SMALL.backbone, depth=50, groups=4, base_width=8)),
        replace(SMALL, roi_head=RoIHeadConfig(fc_channels=32, class_agnostic=True, sampling_ratio=2)),
        replace(
            SMALL, num_classes=7, roi_head=replace(SMALL.roi_head, box_loss="giou", box_loss_weight=10.0)
        ),
    ],
)
def test_other_architectures(config, images, tmp_path):
    certificate = export(confident(config, DATA), tmp_path / "x.onnx", [images], size=SIZE)
    assert certificate.passed and certificate.matched >= 0.99


@pytest.mark.stress
def test_files_reproduce_mmdetections_numbers(stress, monkeypatch):
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", (64, 128, 256, 512))
    names = ("r50", "r101", "r50_caffe", "x101_32x4d") if stress else ("r50",)
    for name in names:
        for format in ("onnx", "openvino", "torch") if stress else ("onnx",):
            result = verify_case(CASES / f"{name}.npz", format=format)[-1]
            assert (result.form, result.detections, result.passed) == (format, 100, True), result


def test_detect_and_eval_take_exported_files(exported, images, tmp_path, capsys):
    path, _ = exported("one.onnx", format="onnx")
    assert run("detect", images, "--model", path, "--output", tmp_path / "out", "--min-score", 0.05) == 0
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 3
    assert run("detect", images, "--model", path, "--device", "cuda") == 2
    assert "leave out" in capsys.readouterr().err
    annotations = {
        "images": [{"id": 1, "file_name": "0.png", "height": 120, "width": 150}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 50, 50], "area": 2500}],
        "categories": [{"id": number, "name": name} for number, name in enumerate("abc", 1)],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    assert run("eval", path, "--annotations", tmp_path / "annotations.json", "--images", images) == 0
    assert "AP" in capsys.readouterr().out


def test_the_command_exports_and_verifies_again(model, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("mine.pth")
    monkeypatch.setattr(
        "frcnn.commands.export.load_model", lambda *_: model
    )  # its channels are not the recipe's
    assert run("export", "mine.pth", "--images", images, "--size", *SIZE) == 0
    assert "certificate    PASSED" in capsys.readouterr().out
    assert sorted(os.listdir()) == ["mine.onnx", "mine.onnx.certificate.json", "mine.pth"]
    assert run("verify", "mine.onnx") == 0
    assert (
        str(tmp_path / "mine.pth")
        in json.loads((tmp_path / "mine.onnx.certificate.json").read_text())["source"]
    )
    assert run("verify", "mine.onnx", "r50") == 2 and run("verify", "--model", "mine.pth") == 2
    assert run("verify", "mine.onnx", "--format", "onnx") == 2
    other = confident(SMALL, DATA, seed=1)
    monkeypatch.setattr("frcnn.commands.export.load_model", lambda *_: other)
    capsys.readouterr()
    assert run("verify", "mine.onnx") == 1
    assert "was made from another model" in capsys.readouterr().err


def test_a_file_without_a_certificate_needs_the_model_named(exported, model, images):
    path, _ = exported("one.onnx", format="onnx")
    assert verify_file(path, lambda *_: model, ("mine.pth", ""), [images]).passed
    with pytest.raises(ExportError, match="model=MODEL"):
        verify_file(path, lambda *_: model)


def test_a_certificate_without_a_detection_is_none(exported):
    _, certificate = exported("one.onnx", format="onnx")
    assert not replace(certificate, detections=(0, 0)).passed
    assert not replace(certificate, mean_box_drift=float("nan")).passed
    assert not replace(certificate, matched=0.98).passed


def test_what_a_file_does_not_do_is_said(exported, images):
    detector = runtime.load(exported("one.onnx", format="onnx")[0])
    with pytest.raises(OptionError, match="details"):
        detector.predict(images / "0.png", details=True)
    with pytest.raises(OptionError, match="128x160, not 64x64"):
        detector._run(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.ones(1, 2), torch.ones(1, 2), False)


def test_no_member_of_an_archive_is_a_pickle(exported):
    """torch.export.load would unpickle it without a look at what it runs."""
    path, _ = exported("one.pt2", format="torch")
    with zipfile.ZipFile(path) as archive:
        contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    inputs = [content for name, content in contents.items() if name.startswith("data/sample_inputs/")]
    assert not any(inputs)
    for kind in ("weights", "constants"):
        entries = json.loads(contents[f"data/{kind}/model_{kind}_config.json"])["config"].values()
        assert not any(entry["use_pickle"] for entry in entries)
    weights = json.loads(contents["data/weights/model_weights_config.json"])["config"]
    assert len(weights) > 40 and not any(name.startswith("data/constants/opaque") for name in contents)


def test_a_file_that_can_run_code_is_loaded_on_request_only(exported, images, tmp_path):
    path, _ = exported("one.pt2", format="torch")
    for name in (path, tmp_path / "x.aoti.pt2", tmp_path / "x.pt2"):
        if not name.exists():
            name.write_bytes(b"whatever")
        with pytest.raises(OptionError, match="run_code=True"):
            runtime.load(name)
        assert run("detect", images, "--model", name, "--output", tmp_path / "out") == 2
    for name in ("x.aoti.pt2", "x.pt2"):
        with pytest.raises(ExportError, match="not an archive"):
            runtime.load(tmp_path / name, run_code=True)
    assert run("detect", images, "--model", path, "--output", tmp_path / "out", "--run-code") == 0


def test_a_batch_of_a_file_holds_different_images(exported, model, images):
    """Three images go through the graph together, and each result is its own image's."""
    detector = runtime.load(exported("three.xml", format="openvino", batch=3)[0])
    calls, call = [], detector._call
    detector._call = lambda *inputs: calls.append(len(inputs[0])) or call(*inputs)
    files = [images / name for name in ("2.png", "0.png", "2.png", "0.png")]
    together = detector.predict(files)
    assert calls == [3, 3]
    for file, found in zip(files, together, strict=True):
        assert compare_detections(found, detector.predict(file)).matched == 1
    assert compare_detections(together[0], together[1]).matched < 0.5


def test_files_of_others_are_refused(exported, tmp_path):
    import onnx

    path, _ = exported("one.onnx", format="onnx")
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "plain.onnx")
    with pytest.raises(ExportError, match="did not write it"):
        runtime.load(tmp_path / "plain.onnx")
    for name in ("cut.onnx", "cut.xml", "cut.pt2"):
        (tmp_path / name).write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ExportError, match=name):
            runtime.load(tmp_path / name, run_code=True)
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="name ends in"):
        runtime.load(CASES / "r50.npz")
