"""What is where an export goes: an earlier one is replaced, whole or not at all, and nothing else is."""

import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
import torch
from small_export import SIZE

from frcnn import runtime
from frcnn.export.certificate import beside, parts_of
from frcnn.export.export import export, put_in_place, verify_file
from frcnn.export.info import ExportError
from frcnn.export.program import ExportedForm, exported_program

pytest.importorskip("nncf", reason="what exports need is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread", "slim")


@pytest.fixture
def wrong_boxes(monkeypatch):
    """What is written for proposals forgets the deltas' unit."""
    from frcnn_ops import onnx

    right = onnx.decode
    monkeypatch.setattr(
        onnx, "decode", lambda boxes, deltas, stds, limits: right(boxes, deltas, [3.0] * 4, limits)
    )


def copied(path, folder):
    """An export and its certificate, in another folder: what each file holds."""
    for file in (*parts_of(path), beside(path)):
        shutil.copy(file, folder / file.name)
    return contents(folder)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_file_with_other_numbers_is_not_written(exported, model, images, tmp_path, request):
    target = tmp_path / "one.onnx"
    before = copied(exported("one.onnx", format="onnx")[0], tmp_path)
    request.getfixturevalue("wrong_boxes")
    with pytest.raises(ExportError, match="numbers are not the model's") as caught:
        export(model, target, [images], size=SIZE)
    assert contents(tmp_path) == before
    lines = dict(line.split(None, 1) for line in str(caught.value).splitlines() if " " in line)
    errors = dict(part.rsplit(" ", 1) for part in lines["stages"].split(", "))
    assert float(errors["features 0"]) < 1e-4 and float(errors["logits 4"]) < 1e-4
    assert float(errors["proposals"]) > 0.05
    assert lines["certificate"] == "FAILED"


@pytest.mark.parametrize("options", [{"batch": 3}, {"dynamic": True}])
def test_a_file_that_loses_a_batchs_other_images_is_not_written(
    model, images, tmp_path, monkeypatch, options
):
    """However many images there are to compare: one is enough."""
    forward = ExportedForm.forward

    def first_alone(self, pixels, sizes, scales):
        first = (torch.arange(len(pixels)) == 0).to(torch.uint8)
        return forward(self, pixels * first[:, None, None, None], sizes, scales)

    monkeypatch.setattr(ExportedForm, "forward", first_alone)
    with pytest.raises(ExportError, match="numbers are not the model's") as caught:
        export(model, tmp_path / "x.pt2", [images / "0.png"], "torch", SIZE, **options)
    assert "certificate    FAILED" in str(caught.value) and contents(tmp_path) == {}


def test_an_export_is_replaced_by_the_next(exported, model, images, tmp_path, monkeypatch):
    """And by nothing where the disk cannot take it; what is no export of ours stays."""
    path, certificate = exported("one.onnx", format="onnx")
    before = copied(path, tmp_path)
    program = exported_program(model, certificate.info)
    monkeypatch.setattr("frcnn.export.export.exported_program", lambda *_: program)

    def again(name="one.onnx", format="onnx"):
        return export(model, tmp_path / name, [images], format=format, size=SIZE)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, format in (("one.onnx", "onnx"), ("new.xml", "openvino"), ("new.pt2", "torch")):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
            with pytest.raises(OSError, match=rf"is the disk full\?.*{name}"):
                again(name, format)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(tmp_path) == before

    monkeypatch.setattr(os, "link", without_links)
    assert again().passed and beside(tmp_path / "one.onnx").read_bytes() != before["one.onnx"]
    assert contents(tmp_path).keys() == before.keys()
    assert verify_file(tmp_path / "one.onnx", lambda *_: model, ("mine.pth", "")).passed

    monkeypatch.setattr("frcnn.export.export.exported_program", lambda *_: pytest.fail("work began"))
    (tmp_path / "one.onnx").write_text("mine")
    (tmp_path / "one.bin").write_text("mine")
    (tmp_path / "two.onnx").symlink_to("nowhere")
    for name, format in (("one.onnx", "onnx"), ("one.xml", "openvino"), ("two.onnx", "onnx")):
        with pytest.raises(ExportError, match="exists, and is no export with its certificate"):
            again(name, format)


def without_links(*_):
    raise PermissionError("no links on this file system")


@pytest.mark.parametrize(
    "name, options",
    [
        ("one.onnx", {"format": "onnx"}),
        ("three.xml", {"format": "openvino", "batch": 3}),
        ("one.pt2", {"format": "torch"}),
    ],
)
def test_exports_have_the_usual_permissions(exported, name, options):
    path, _ = exported(name, **options)
    umask = os.umask(0o022)
    os.umask(umask)
    for file in (*parts_of(path), beside(path)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_a_pair_of_openvino_is_replaced_whole(exported, model, images, tmp_path, monkeypatch):
    path, _ = exported("three.xml", format="openvino", batch=3)
    before = copied(path, tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    for name in before:
        (new / name).write_text("new")
    replace_file = Path.replace

    def interrupted(file, target):
        if file.name == "three.xml":
            raise KeyboardInterrupt
        return replace_file(file, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(
            [new / name for name in ("three.xml", "three.bin", "three.xml.certificate.json")], tmp_path
        )
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    (tmp_path / "three.bin").write_bytes(before["three.bin"][:-4] + b"1234")
    with pytest.raises(ExportError, match="another model's"):
        runtime.load(tmp_path / "three.xml")
