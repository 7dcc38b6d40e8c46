"""`model.save` and `frcnn.load`: the same model again, from either format."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import frcnn
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.save import checksum, save_checkpoint, save_weights

NAMES = ("red cell", "white cell", "Plättchen")
ENDINGS = (".pth", ".safetensors")


@pytest.fixture
def model(small_recipe):
    torch.manual_seed(1)
    recipe = replace(small_recipe, data=replace(small_recipe.data, size=(320, 256)))
    return frcnn.build(recipe, class_names=NAMES)


def equal(one, other):
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_saved_model_comes_back(model, tmp_path, ending):
    path = tmp_path / f"mine{ending}"
    model.train().save(path)
    assert list(tmp_path.iterdir()) == [path] and model.training
    again = frcnn.load(path)
    assert equal(again, model) and not again.training
    assert (again.config, again.data, again.class_names) == (model.config, model.data, NAMES)
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("ending", ENDINGS)
def test_classes_without_names_and_other_memory_formats(small_recipe, tmp_path, ending):
    model = frcnn.build(small_recipe, num_classes=2).to(memory_format=torch.channels_last)
    model.save(tmp_path / f"x{ending}")
    again = frcnn.load(tmp_path / f"x{ending}")
    assert equal(again, model) and again.class_names == () and again.config.num_classes == 2


def test_a_pth_is_plain_and_says_its_checksum(model, tmp_path):
    model.save(tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content.pop("checksum") == checksum(content)
    assert content["meta"]["CLASSES"] == content["meta"]["dataset_meta"]["classes"] == NAMES
    assert content["meta"]["recipe"]["data"]["size"] == [320, 256]
    assert set(content["state_dict"]) == set(model.state_dict())


def test_a_safetensors_file_says_recipe_and_classes(model, tmp_path):
    model.save(str(tmp_path / "x.safetensors"))
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert "Plättchen" in file.metadata()["frcnn"].encode().decode("unicode_escape")
        assert set(file.keys()) == set(model.state_dict())


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_has_the_permissions_of_any_new_file(model, tmp_path, ending):
    before = os.umask(0o027)
    try:
        model.save(tmp_path / f"x{ending}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"x{ending}").stat().st_mode) == 0o640


def test_what_cannot_be_written_is_said_before_work(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"x\.ckpt: the name must end in \.safetensors .* or \.pth"):
        model.save(tmp_path / "x.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        model.save(tmp_path / "absent" / "x.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(IsADirectoryError):
        model.save(tmp_path / "folder.pth")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written to"):
        model.save(tmp_path / "x.pth")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left on device")))
    with pytest.raises(OSError, match="no space"):
        model.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_signal_raises_during_a_write_is_what_is_reported(tmp_path, monkeypatch):
    """torch raises the death of a loader's worker wherever the main thread is; torch.save hid it."""

    class Interrupted(io.BytesIO):
        def write(self, data):
            if self.tell() > 200:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
            return super().write(data)

    monkeypatch.setattr("frcnn.checkpoint.save.replacing", lambda path: contextlib.nullcontext(Interrupted()))
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid 1\)"):
        save_checkpoint(tmp_path / "x.pth", {"state_dict": {"weight": torch.ones(3)}})


def test_weights_that_could_not_be_loaded_are_not_saved(model, tmp_path):
    with torch.no_grad():
        model.rpn_head.rpn_cls.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"1 tensors are not finite: rpn_head\.rpn_cls\.bias"):
        model.save(tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["state dict", "MMDetection", "bare file"])
def test_weights_of_a_named_recipe(model, small_recipe, tmp_path, form):
    """The number of classes follows the weights, named or not."""
    state = model.state_dict()
    path = tmp_path / "epoch_12.pth"
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": state} if form == "MMDetection" else state, path)
    source = state if form == "state dict" else path
    with pytest.raises(CheckpointError, match="weights but no recipe"):
        frcnn.load(source)
    again = frcnn.load(source, recipe=small_recipe)
    assert equal(again, model) and again.class_names == (NAMES if form == "MMDetection" else ())
    with pytest.raises(CheckpointError, match="do not fit"):
        frcnn.load(source, recipe="small_r18_fpn")


def test_a_given_recipe_goes_before_the_files(model, tmp_path):
    model.save(tmp_path / "x.pth")
    eager = replace(model.config, roi_head=replace(model.config.roi_head, score_threshold=0.5))
    again = frcnn.load(tmp_path / "x.pth", recipe=frcnn.Recipe("eager", eager))
    assert equal(again, model) and again.config.roi_head.score_threshold == 0.5


def test_a_recipe_that_takes_gigabytes_is_named(model, tmp_path):
    path = tmp_path / "large.safetensors"
    model.data = replace(model.data, size=(8192, 8192))
    model.save(path)
    with pytest.warns(UserWarning, match=r"large\.safetensors: .* 8192x8192 \(data\.size\), .* 25 GB"):
        frcnn.load(path)


def test_a_name_that_is_no_text_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="a tensor's name is no text"):
        save_weights(tmp_path / "a.safetensors", {"\udc80": torch.ones(1)}, None, ())
    assert not list(tmp_path.iterdir())
