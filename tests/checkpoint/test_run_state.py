"""Checkpoints are whole, plain, and say what is wrong with them."""

import os
import random

import numpy as np
import pytest
import torch

import frcnn
from frcnn.checkpoint import run_state as checkpoint
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.plain import from_plain, to_plain
from frcnn.checkpoint.save import save_checkpoint
from frcnn.config import BackboneConfig, ModelConfig, Recipe, RoIHeadConfig
from frcnn.zoo.build import load


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"value": torch.arange(3)})
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"value": torch.arange(4)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("replace"), replace(*a)))
    save_checkpoint(tmp_path / "last.pth", {})
    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("size", [0, 10, 2000])
def test_a_truncated_file_is_named_with_a_remedy(tmp_path, size):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"value": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"last\.pth: cut short \(.*\); delete it and train anew$"):
        checkpoint.read_training_state(path)
    path.with_name("best.pth").touch()
    with pytest.raises(CheckpointError, match=r"the best weights so far: weights=.*best\.pth$"):
        checkpoint.read_training_state(path)


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "last.pth"
    with pytest.raises(CheckpointError, match=r"last\.pth: no such file"):
        checkpoint.read_training_state(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="does not hold the state of a training run"):
        checkpoint.read_training_state(path)


def test_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"training": {"format": checkpoint.FORMAT}, "object": random.Random(0)}, path)
    with pytest.raises(CheckpointError, match=r"last\.pth: .*an object of random\.Random.*train anew$"):
        checkpoint.read_training_state(path)


def test_random_states_survive_the_file(tmp_path):
    def draw():
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(1).item(),
        ]

    draw()
    path = tmp_path / "state.pth"
    save_checkpoint(path, checkpoint.random_state())
    expected = [draw(), draw()]
    checkpoint.set_random_state(torch.load(path, weights_only=True))
    assert [draw(), draw()] == expected


@pytest.mark.parametrize("name", [*frcnn.list_recipes(), "small_r18_fpn"])
def test_recipes_survive_being_made_plain(name):
    recipe = frcnn.recipe(name)
    assert from_plain(Recipe, to_plain(recipe)) == recipe


def test_fields_of_another_version_are_named():
    plain = to_plain(Recipe("any"))
    plain["model"]["rpn"]["color"] = "blue"
    with pytest.raises(CheckpointError, match=r"RPNConfig has no color.*another version"):
        from_plain(Recipe, plain)
    del plain["model"]["rpn"]["color"], plain["model"]["rpn"]["samples"]
    assert from_plain(Recipe, plain) == Recipe("any")


def test_a_model_comes_back_from_its_checkpoint(tmp_path):
    config = ModelConfig(BackboneConfig(depth=18), 16, roi_head=RoIHeadConfig(fc_channels=16), num_classes=2)
    recipe = Recipe("any", config)
    model = frcnn.build(recipe, class_names=("a", "b"))
    path = tmp_path / "best.pth"
    meta = {"recipe": to_plain(recipe), "dataset_meta": {"classes": ["a", "b"]}}
    save_checkpoint(path, {"state_dict": model.state_dict(), "meta": meta})
    again = load(path)
    assert again.config == config and again.class_names == ("a", "b") and not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_without_a_recipe_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {}}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth holds weights but no recipe"):
        load(path)
