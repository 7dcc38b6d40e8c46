"""Exported files that were changed, or made to harm: an error that names them, and no results."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command import run
from confident_detector import confident
from noise_images import write_images

from frcnn import runtime
from frcnn.checked import OptionError
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.save import save_model
from frcnn.engine.detect import detect
from frcnn.export.certificate import at_export, beside
from frcnn.export.export import described
from frcnn.export.info import INPUTS, KEY, OUTPUTS, ExportError, ExportInfo
from frcnn.zoo.build import load

onnx = pytest.importorskip("onnx", reason="onnx is of the extra export")
pytest.importorskip("onnxruntime", reason="onnxruntime is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (96, 160)
NOTHING = {
    "boxes": np.zeros((1, 100, 4), np.float32),
    "scores": np.zeros((1, 100), np.float32),
    "labels": np.full((1, 100), -1, np.int64),
    "counts": np.zeros(1, np.int64),
}


@pytest.fixture(scope="module")
def info():
    return described(confident(), "onnx", SIZE, batch=1)


@pytest.fixture
def file(info, tmp_path):
    """`file(labels=…)`: an ONNX file that says it is a detector and returns what is given, whatever it is
    shown."""

    def write(inputs=INPUTS, order=OUTPUTS, **changed):
        helper = onnx.helper
        values = {name: changed.get(name, NOTHING[name]) for name in order}
        nodes = [
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
            for name, value in values.items()
        ]
        kinds = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT
        shapes = [1, *SIZE, 3], [1, 2], [1, 2]
        given = [
            helper.make_tensor_value_info(*one)
            for one in zip(inputs, kinds[: len(inputs)], shapes, strict=False)
        ]
        returned = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in values.items()
        ]
        model = helper.make_model(
            helper.make_graph(nodes, "g", given, returned),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,  # older than what the installed onnx would write, and its runtime may not read
        )
        helper.set_model_props(model, {KEY: info.to_json()})
        onnx.save(model, tmp_path / "hostile.onnx")
        return tmp_path / "hostile.onnx"

    return write


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", (96, 160))


ONE = {"counts": np.ones(1, np.int64), "labels": np.zeros((1, 100), np.int64)}


def test_a_file_that_finds_what_it_may_is_believed(file, images):
    assert len(runtime.load(file()).predict(images)[0]) == 0
    (found,) = runtime.load(file(**ONE)).predict(images)
    assert (len(found), found.labels.tolist(), found.class_names) == (1, [0], tuple("abc"))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"labels": np.full((1, 100), 99)}, "labels outside its 3 classes"),
        ({"labels": np.full((1, 100), -5)}, "labels outside"),
        ({"labels": np.zeros((1, 100), np.float32)}, "no detections"),
        ({"boxes": np.zeros((1, 5), np.float32)}, "no detections"),
        ({"boxes": np.full((1, 100, 4), np.nan, np.float32)}, "boxes inverted or outside"),
        ({"boxes": np.full((1, 100, 4), np.inf, np.float32)}, "boxes inverted or outside"),
        ({"boxes": np.full((1, 100, 4), 3e38, np.float32)}, "boxes inverted or outside"),
        ({"boxes": np.tile(np.float32([50, 50, 10, 10]), (1, 100, 1))}, "boxes inverted or outside"),
        ({"boxes": np.full((1, 100, 4), -9, np.float32)}, "boxes inverted or outside"),
        ({"scores": np.full((1, 100), np.nan, np.float32)}, "scores outside"),
        ({"scores": np.full((1, 100), 1e30, np.float32)}, "scores outside"),
        ({"scores": np.zeros((1, 99), np.float32)}, "no detections"),
        ({"counts": np.full(1, 10**9)}, "counts outside 0 to 100"),
        ({"counts": np.full(1, -1)}, "counts outside"),
        ({"counts": np.ones(2, np.int64)}, "no detections"),
        ({"inputs": ("pixels", "sizes", "scales")}, "its runtime failed"),
        ({"inputs": ("images", "sizes")}, "its runtime failed"),
        ({"order": OUTPUTS[:3]}, "no detections"),
        ({"order": OUTPUTS[::-1]}, "no detections"),
    ],
)
def test_what_is_no_detection_is_no_result(file, images, tmp_path, capsys, changed, message):
    path = file(**{**ONE, **changed})
    with pytest.raises(ExportError, match=f"hostile.onnx.*{message}"):
        runtime.load(path).predict(images)
    assert run("detect", images, "--model", path, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "hostile.onnx" in error and "Traceback" not in error
    assert '"detections"' not in (tmp_path / "out" / "detections.jsonl").read_text()


def test_a_failing_backend_is_named(file, images):
    detector = runtime.load(file())

    def out_of_memory(*_):
        raise RuntimeError("cannot allocate 99 GB")

    detector._call = out_of_memory
    with pytest.raises(ExportError, match=r"hostile\.onnx.*1 images of 96x160: cannot allocate 99 GB"):
        detector.predict(images)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"source": ["a", ""], "images": "im", "sha256": ""}', "[]", '{"source": 1}', "\x00"],
)
def test_a_certificate_of_any_kind(text, file, capsys):
    path = file()
    beside(path).write_text(text)
    assert at_export(path).images == ()
    assert run("verify", path) == 1
    error = capsys.readouterr().err
    assert "does not say which model" in error or "real images" in error


def test_a_size_that_no_dynamic_file_takes_is_refused_before_work(info, images, tmp_path):
    dynamic = replace(info, dynamic=True, size=(128, 160))
    detector = runtime.ExportedDetector(
        lambda *_: pytest.fail("work began"), dynamic, "", tmp_path / "x.onnx"
    )
    for call in (
        lambda: detect(detector, [images], tmp_path / "out", size=(5000, 800)),
        lambda: detector.predict(images / "0.png", size=(5000, 800)),
        lambda: next(detector.stream(images, size=(5000, 800))),
    ):
        with pytest.raises(OptionError, match=r"size=\(5000, 800\): .*x\.onnx takes sides of 4096 at most"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[2J", "a\nb", "", "a" * 5000])
def test_a_class_name_that_harms_is_refused(name, info, tmp_path):
    """Half of a surrogate pair ends the process that draws it, and a terminal obeys control characters."""
    fields = json.loads(info.to_json())
    with pytest.raises(ExportError, match=r"x: what it says of itself cannot be read .*control characters"):
        ExportInfo.from_json(json.dumps({**fields, "class_names": ["a", "b", name]}), "x")
    model = confident()
    model.class_names = ("a", "b", name)
    save_model(model, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth.*class name"):
        load(tmp_path / "x.pth")
