"""Recipes of files: every wrong value is a CheckpointError with the field's path, before memory is taken."""

from __future__ import annotations

import json
import resource
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import frcnn
from frcnn.checkpoint.convert import convert
from frcnn.checkpoint.load import CheckpointError, load_checkpoint
from frcnn.checkpoint.plain import from_plain, to_plain
from frcnn.config import Recipe, RoIHeadConfig
from frcnn.zoo.build import load


@pytest.mark.parametrize("name", frcnn.list_recipes())
def test_every_recipe_comes_back(name):
    assert from_plain(Recipe, to_plain(frcnn.recipe(name))) == frcnn.recipe(name)


def test_absent_fields_take_their_defaults():
    assert from_plain(Recipe, {"name": "x"}) == Recipe("x")


WRONG = [
    (5, "recipe is 5"),
    ([], "recipe is a list"),
    ({}, "recipe: .*'name'"),
    ({"name": None}, r"recipe\.name is None"),
    ({"name": "x" * 1001}, r"recipe\.name is x+…, not a short text"),
    ({"name": "x", "model": []}, r"recipe\.model is a list, not the fields of a ModelConfig"),
    ({"name": "x", "color": 1}, "recipe: Recipe has no color: the file comes from another version"),
    ({"nam": "x"}, "recipe: Recipe has no nam: .* another version of frcnn, or name is meant$"),
    ({"name": "x", 5: 1}, "recipe: Recipe has no 5"),
    ({"name": "x", "published": {"box_ap": "high"}}, r"recipe\.published\.box_ap is high"),
    ({"name": "x", "data": {"size": [1333]}}, r"recipe\.data\.size has 1 values, not 2"),
    ({"name": "x", "data": {"rgb": 1}}, r"recipe\.data\.rgb is 1, not a bool"),
    ({"name": "x", "schedule": {"lr": "0.1"}}, r"recipe\.schedule\.lr is 0\.1, not a finite number"),
    ({"name": "x", "schedule": {"clip_grad_norm": "a"}}, r"recipe\.schedule\.clip_grad_norm is a"),
]
WRONG_MODEL = [
    ({"num_classes": 10**12}, r"num_classes is 1000000000000, not an integer up to"),
    ({"num_classes": 10**5000}, r"num_classes is an integer of 16610 bits"),
    ({"num_classes": True}, "num_classes is True"),
    ({"num_classes": 2.5}, "num_classes is 2.5"),
    ({"fpn_channels": 2**40}, "fpn_channels is 1099511627776"),
    ({"strides": [4] * 65}, "strides is a list, not a list of at most 64"),
    ({"strides": "48"}, "strides is 48"),
    ({"strides": [4, "8"]}, r"strides\[1\] is 8"),
    ({"backbone": {"depth": "50"}}, r"backbone\.depth is 50, not one of"),
    ({"backbone": {"depth": 51}}, r"backbone\.depth is 51"),
    ({"backbone": {"style": ["caffe"]}}, r"backbone\.style is a list"),
    ({"roi_head": {"nms_iou": float("nan")}}, r"roi_head\.nms_iou is nan"),
    ({"roi_head": {"nms_iou": [0.5]}}, r"roi_head\.nms_iou is a list"),
    ({"rpn": {"scales": [float("inf")]}}, r"rpn\.scales\[0\] is inf"),
]


@pytest.mark.parametrize(
    "plain, said",
    WRONG + [({"name": "x", "model": model}, rf"recipe\.model\.{said}") for model, said in WRONG_MODEL],
)
def test_wrong_values_are_named_by_their_path(plain, said):
    with pytest.raises(CheckpointError, match=f"^{said}"):
        from_plain(Recipe, plain)


def with_recipe(path, recipe, **tensors):
    save_file(tensors or {"a": torch.ones(1)}, path, metadata={"frcnn": json.dumps({"recipe": recipe})})
    return path


@pytest.mark.parametrize("model", [[], "x", 7, {"backbone": []}, {"backbone": {"style": []}}])
def test_a_strange_recipe_is_an_error_only_where_it_is_used(model, small_recipe, tmp_path):
    ours = frcnn.build(small_recipe)
    path = with_recipe(tmp_path / "a.safetensors", {"name": "x", "model": model}, **ours.state_dict())
    load_checkpoint(ours, path)
    for use in (load, lambda path: convert(path, tmp_path / "b.pth")):
        with pytest.raises(CheckpointError, match=r"a\.safetensors: recipe\.model"):
            use(path)
    convert(path, tmp_path / "b.pth", recipe=small_recipe)


@pytest.mark.parametrize("change", [{"fpn_channels": 4096}, {"roi_head": RoIHeadConfig(fc_channels=20_000)}])
def test_a_recipe_that_its_weights_do_not_fit_takes_no_memory(change, small_recipe, tmp_path):
    recipe = replace(small_recipe, model=replace(small_recipe.model, **change))
    path = with_recipe(tmp_path / "a.safetensors", to_plain(recipe))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"(?s)a\.safetensors: .*missing"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_many_class_names_take_no_memory_without_weights_for_them(small_recipe, tmp_path):
    meta = {"recipe": to_plain(small_recipe), "CLASSES": ["a"] * 90_000}
    torch.save({"state_dict": frcnn.build(small_recipe).state_dict(), "meta": meta}, tmp_path / "a.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"a\.pth: it knows 80 classes .*the model 90000"):
        load(tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
