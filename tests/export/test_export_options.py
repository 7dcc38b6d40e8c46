"""What is refused before there is a file, and what a file says of itself."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from command import run
from small_export import SIZE

from frcnn.export import formats
from frcnn.export.export import described, export, trtexec
from frcnn.export.info import ExportError, ExportInfo

pytest.importorskip("nncf", reason="what exports need is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread", "slim")


def test_images_without_a_detection_certify_nothing(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr("frcnn.export.certificate.SCORE", 1.0)
    monkeypatch.setattr(
        "frcnn.export.export.exported_program", lambda *_: pytest.fail("work before the check")
    )
    with pytest.raises(ExportError, match="finds nothing in these images"):
        export(model, tmp_path / "x.onnx", images, size=SIZE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("x.onnx", {"most_images": 0}, "most_images=0"),
        ("x.onnx", {"size": (128,)}, "multiples of 32"),
        ("x.onnx", {"batch": 2.5}, "batch=2.5"),
        ("x.pt", {}, r"ends in \.onnx"),
        ("x.aoti.pt2", {"format": "torch"}, r"ends in \.pt2"),
        ("x.onnx", {"size": (100, 160)}, "multiples of 32"),
        ("x.onnx", {"size": (64, 64), "dynamic": True}, "from 128"),
        ("x.onnx", {"batch": 0}, "batch=0"),
        ("x.onnx", {"precision": "int8"}, "onnx is written in float32 or float16"),
        ("x.xml", {"format": "openvino", "precision": "int8", "dynamic": True}, "calibrated for one size"),
        ("x.onnx", {"format": "coreml"}, "no format 'coreml'"),
    ],
)
def test_options_that_a_format_lacks(model, images, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / name, [images], **{"size": SIZE, **options})
    assert os.listdir(tmp_path) == []


def test_missing_images_and_packages_are_named(model, images, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        export(model, tmp_path / "x.onnx", [tmp_path / "empty"], size=SIZE)

    with pytest.raises(ExportError, match="real images"):
        export(model, tmp_path / "x.onnx", [], size=SIZE)

    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(
        ExportError, match=r"needs onnx, .*: pip install onnx onnxscript onnxruntime, .* extra export"
    ):
        export(model, tmp_path / "x.onnx", [images], size=SIZE)


@pytest.mark.parametrize(
    "option, says",
    [
        (("--opset", "11"), "--opset: ONNX files are of opset 18"),
        (("--device", "cuda"), "--device: files are made"),
    ],
)
def test_options_that_people_look_for_are_explained(images, capsys, option, says):
    assert run("export", "mine.pth", "--images", images, *option) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"size": [128]},
        {"size": 128},
        {"batch": 10**9},
        {"batch": float("inf")},
        {"precision": "int3"},
        {"recipe": 1},
        {"versions": 0},
        {"class_names": ["a"]},
    ],
)
def test_what_a_file_says_of_itself_is_checked(model, change):
    info = described(model, "onnx", SIZE, batch=1)
    fields = json.loads(info.to_json())
    assert ExportInfo.from_json(json.dumps(fields), "x") == info
    with pytest.raises(ExportError, match="x: what it says of itself"):
        ExportInfo.from_json(json.dumps({**fields, **change}), "x")


def test_tensorrt_is_told_the_shapes(model):
    info = described(model, "tensorrt", SIZE, batch=1, precision="float16")
    assert trtexec(Path("a.onnx"), info) == "trtexec --onnx=a.onnx --stronglyTyped --saveEngine=a.engine"
    dynamic = trtexec(Path("a.onnx"), replace(info, dynamic=True))
    assert "--minShapes=images:1x128x128x3,sizes:1x2,scales:1x2 " in dynamic
    assert "--optShapes=images:1x128x160x3," in dynamic and "--maxShapes=images:8x160x160x3," in dynamic
