"""What load_checkpoint reads, what it refuses, and what it says."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections import OrderedDict
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import frcnn
from frcnn.checkpoint.convert import convert
from frcnn.checkpoint.load import CheckpointError, load_checkpoint, read_checkpoint
from frcnn.checkpoint.pretrained import load_backbone
from frcnn.zoo.build import load

NAMES = ("RBC", "WBC", "Platelets")


@pytest.fixture
def source(small_recipe):
    """A model of three classes with weights of its own."""
    torch.manual_seed(1)
    model = frcnn.build(small_recipe, num_classes=3)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.add_(torch.randn(value.shape) * 0.1)
    return model


@pytest.fixture
def target(small_recipe):
    return frcnn.build(small_recipe, num_classes=3)


def same(model, other, skip=()):
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[name])
        for name, value in model.state_dict().items()
        if not name.startswith(skip)
    )


@pytest.fixture
def mmengine(monkeypatch):
    """Modules like mmengine's, there while a file is written and gone when it is read."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self._statistics_methods = OrderedDict(mean=len)

    class ConfigDict(dict):
        pass

    for path, kind in {
        "mmengine.logging.history_buffer": HistoryBuffer,
        "mmengine.config.config": ConfigDict,
    }.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
        kind.__module__, kind.__qualname__ = path, kind.__name__
        setattr(sys.modules[path], kind.__name__, kind)
    return HistoryBuffer, ConfigDict


def test_mmdetection_2(source, target, tmp_path):
    meta = {
        "CLASSES": NAMES,
        "config": "model = dict(backbone=dict(style='pytorch'))",
        "epoch": 12,
        "seed": None,
    }
    optimizer = {
        "state": {0: {"momentum_buffer": torch.ones(3)}},
        "param_groups": [{"lr": 0.02, "params": [0]}],
    }
    content = {"meta": meta, "state_dict": source.state_dict(), "optimizer": optimizer}
    torch.save(content, tmp_path / "epoch_12.pth", _use_new_zipfile_serialization=False)
    report = load_checkpoint(target, tmp_path / "epoch_12.pth")
    assert same(target, source)
    assert target.class_names == report.class_names == NAMES
    assert report.notes == ()


def test_mmdetection_3(source, target, tmp_path, mmengine, monkeypatch):
    history, config = mmengine
    state = source.state_dict()
    state["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    content = {
        "meta": {
            "dataset_meta": {"classes": NAMES, "palette": [(1, 2, 3)]},
            "cfg": "text",
            "experiment": config(a=1),
        },
        "state_dict": state,
        "message_hub": {"log_scalars": OrderedDict(loss=history())},
        "optimizer": {"state": {0: {"step": history()}}},
    }
    torch.save(content, tmp_path / "epoch_12.pth")
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        monkeypatch.delitem(sys.modules, name)
    report = load_checkpoint(target, tmp_path / "epoch_12.pth")
    assert same(target, source)
    assert target.class_names == NAMES
    assert "mmengine.logging.history_buffer.HistoryBuffer" in str(report)
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize(
    "form", ["bare", "module", "compiled", "mapping", "whole", "safetensors", "model", "half"]
)
def test_other_forms(form, source, target, tmp_path):
    state = source.state_dict()
    path = tmp_path / "file.pth"
    if form == "safetensors":
        path = tmp_path / "file.safetensors"
        save_file(state, path)
    elif form == "half":
        torch.save(
            {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
            path,
        )
    elif form == "module":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif form == "compiled":
        torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, path)
    elif form == "model":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        torch.save(state, path)
    given = {"mapping": state, "whole": {"state_dict": state, "meta": {"CLASSES": NAMES}}}.get(form, path)
    load_checkpoint(target, given)
    if form == "half":
        assert all(torch.allclose(v, state[n], atol=1e-2) for n, v in target.state_dict().items())
    else:
        assert same(target, source)
    assert target.class_names == (NAMES if form == "whole" else ())


def test_our_training_checkpoints(source, target, small_recipe, tmp_path):
    from frcnn.checkpoint.plain import to_plain
    from frcnn.checkpoint.save import save_checkpoint

    recipe = replace(small_recipe, model=source.config)
    meta = {"recipe": to_plain(recipe), "dataset_meta": {"classes": list(NAMES)}, "epoch": 1, "iter": 10}
    save_checkpoint(tmp_path / "last.pth", {"state_dict": source.state_dict(), "optimizer": {}, "meta": meta})
    load_checkpoint(target, tmp_path / "last.pth")
    assert same(target, source) and target.class_names == NAMES
    model = load(tmp_path / "last.pth")
    assert same(model, source) and model.config == source.config and model.class_names == NAMES


def test_counters_of_batch_norm_may_be_absent(source, target):
    state = {n: v for n, v in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    load_checkpoint(target, state)
    assert same(target, source)


def test_ema_copies_are_left_out(source, target):
    state = source.state_dict()
    load_checkpoint(target, {**state, "ema_backbone_conv1_weight": torch.zeros(1)})
    assert same(target, source)


def test_mismatches_are_listed_and_the_model_stays_as_it_was(source, target):
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = source.state_dict()
    for index in range(4):
        del state[f"neck.lateral_convs.{index}.conv.weight"], state[f"neck.lateral_convs.{index}.conv.bias"]
    state["mask_head.weight"] = torch.zeros(1)
    state["rpn_head.rpn_cls.weight"] = torch.zeros(9, 16, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(target, state)
    message = str(caught.value)
    assert "8 missing: neck.lateral_convs.0.conv.weight, " in message and "and 3 more" in message
    assert "1 unexpected: mask_head.weight" in message
    assert (
        "1 of another shape: rpn_head.rpn_cls.weight has (9, 16, 1, 1), the model needs (3, 16, 1, 1)"
        in message
    )
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_other_classes_are_an_error_that_says_both(source, small_recipe):
    model = frcnn.build(small_recipe, class_names=["cat", "dog"])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, {"state_dict": source.state_dict(), "meta": {"CLASSES": NAMES}})
    assert "3 classes (RBC, WBC, Platelets)" in str(caught.value)
    assert "2 classes (cat, dog)" in str(caught.value)
    assert "num_classes=3" in str(caught.value) and "reinit_heads=True" in str(caught.value)


def test_heads_start_afresh_when_asked(source, small_recipe):
    model = frcnn.build(small_recipe, class_names=["cat", "dog"])
    content = {"state_dict": source.state_dict(), "meta": {"CLASSES": NAMES}}
    with pytest.warns(UserWarning, match=r"start afresh for 2 classes \(cat, dog\)"):
        report = load_checkpoint(model, content, reinit_heads=True)
    heads = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg")
    assert same(model, source, skip=heads)
    assert model.class_names == report.class_names == ("cat", "dog")
    assert model.roi_head.bbox_head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert model.roi_head.bbox_head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.5)
    assert not model.roi_head.bbox_head.fc_cls.bias.any()


def test_as_many_classes_of_other_names_are_refused(source, small_recipe):
    model = frcnn.build(small_recipe, class_names=["RBC", "Platelets", "WBC"])
    content = {"state_dict": source.state_dict(), "meta": {"CLASSES": NAMES}}
    with pytest.raises(CheckpointError, match="class 1 is 'WBC' in it and 'Platelets' in the model"):
        load_checkpoint(model, content)


def test_names_that_do_not_fit_the_weights_are_refused(source, target):
    with pytest.raises(CheckpointError, match="names 2 classes"):
        load_checkpoint(target, {"state_dict": source.state_dict(), "meta": {"CLASSES": ("a", "b")}})


@pytest.mark.parametrize("classes", [None, 5, [1, 2, 3], {"a": 1}])
def test_strange_names_are_no_names(classes, source, target):
    load_checkpoint(target, {"state_dict": source.state_dict(), "meta": {"CLASSES": classes}})
    assert same(target, source) and target.class_names == ()


def test_one_class_without_its_tuple():
    content = {"state_dict": {"a": torch.ones(1)}, "meta": {"CLASSES": "cell"}}
    assert read_checkpoint(content).class_names == ("cell",)


def test_a_caffe_checkpoint_in_a_pytorch_model_is_warned_of(source, target):
    meta = {"config": "model = dict(\n    backbone=dict(\n        style='caffe'))"}
    with pytest.warns(UserWarning, match="caffe-style backbone and the model is pytorch style"):
        load_checkpoint(target, {"state_dict": source.state_dict(), "meta": meta})


def test_mmdetection_1_is_named(target):
    state = {"bbox_head.fc_cls.weight": torch.zeros(4, 32), "bbox_head.fc_cls.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r"MMDetection 1\.x"):
        load_checkpoint(target, state)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {}])
def test_no_state_dict_is_said(content, target, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: no state dict found"):
        load_checkpoint(target, tmp_path / "file.pth")


def test_another_value_is_said(tmp_path):
    torch.save([1, 2], tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="holds one list, not a state dict"):
        read_checkpoint(tmp_path / "file.pth")


def test_a_damaged_safetensors_file_is_said(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match=r"no safetensors file \(.*\); download or copy it again$"):
        read_checkpoint(tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.safetensors")


def test_build_takes_classes_from_the_checkpoint(source, small_recipe, tmp_path):
    torch.save({"state_dict": source.state_dict(), "meta": {"CLASSES": NAMES}}, tmp_path / "file.pth")
    model = frcnn.build(small_recipe, weights=tmp_path / "file.pth")
    assert same(model, source) and model.class_names == NAMES and not model.training
    with pytest.warns(UserWarning, match="start afresh"):
        tuned = frcnn.build(small_recipe, tmp_path / "file.pth", class_names=["a", "b"], reinit_heads=True)
    assert tuned.class_names == ("a", "b") and tuned.config.num_classes == 2
    with pytest.raises(CheckpointError, match=r"file\.pth: it knows 3 classes"):
        frcnn.build(small_recipe, tmp_path / "file.pth", num_classes=2)


def test_build_refuses_contradictions(small_recipe):
    with pytest.raises(ValueError, match="contradicts"):
        frcnn.build(small_recipe, num_classes=3, class_names=["a", "b"])
    with pytest.raises(ValueError, match="no checkpoint of"):
        frcnn.build(replace(small_recipe, published=None), weights="coco")


def test_a_backbone_from_a_detector_or_a_classifier(source, target, tmp_path):
    torch.save({"state_dict": source.state_dict()}, tmp_path / "detector.pth")
    load_backbone(target, tmp_path / "detector.pth")
    assert torch.equal(target.backbone.conv1.weight, source.backbone.conv1.weight)
    state = {f"module.{name}": value + 1 for name, value in source.backbone.state_dict().items()}
    torch.save({"state_dict": {**state, "module.fc.bias": torch.zeros(10)}}, tmp_path / "classifier.pth")
    load_backbone(target, tmp_path / "classifier.pth")
    assert torch.equal(target.backbone.conv1.weight, source.backbone.conv1.weight + 1)


def test_training_from_nothing_says_what_it_means(small_recipe):
    with pytest.warns(UserWarning, match=r"frozen_stages=-1|norm_eval=False") as caught:
        frcnn.build(small_recipe, weights="random")
    assert len(caught) == 2
    free = replace(small_recipe.model.backbone, frozen_stages=-1, norm_eval=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frcnn.build(replace(small_recipe, model=replace(small_recipe.model, backbone=free)), weights="random")
        frcnn.build(small_recipe)


def test_another_backbone_is_refused(target, tmp_path):
    other = frcnn.build("faster_rcnn_r50_fpn_1x_coco")
    torch.save(other.backbone.state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="not a backbone of this model"):
        load_backbone(target, tmp_path / "resnet50.pth")
    with pytest.raises(ValueError, match="'torchvision://vgg16' is not known"):
        load_backbone(target, "torchvision://vgg16")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_convert_keeps_weights_names_and_recipe(ending, source, target, small_recipe, tmp_path, capsys):
    recipe = replace(small_recipe, model=source.config)
    meta = {"CLASSES": NAMES, "recipe": asdict(recipe)}
    torch.save({"state_dict": source.state_dict(), "meta": meta, "optimizer": {}}, tmp_path / "in.pth")
    out = convert(tmp_path / "in.pth", tmp_path / f"out{ending}")
    assert "3 class names" in capsys.readouterr().out
    load_checkpoint(target, out)
    assert same(target, source) and target.class_names == NAMES
    assert read_checkpoint(out).recipe["model"]["fpn_channels"] == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", f"out{ending}"]
    if ending == ".pth":
        content = torch.load(out, weights_only=True)
        assert set(content) == {"meta", "state_dict", "checksum"}
        assert content["meta"]["CLASSES"] == content["meta"]["dataset_meta"]["classes"] == NAMES
        assert list(content["state_dict"]) == list(source.state_dict())


def test_convert_says_first_that_it_cannot_write(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "frcnn.checkpoint.convert.read_checkpoint", lambda _: pytest.fail("read before it was checked")
    )
    (tmp_path / "folder.pth").mkdir()
    for target, said in [
        ("absent/out.pth", "there is no folder .*absent; make it"),
        ("folder.pth", "is a folder"),
    ]:
        with pytest.raises(ValueError, match=said):
            convert(tmp_path / "in.pth", tmp_path / target)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_converted_files_have_the_usual_permissions(ending, source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "in.pth")
    original = (tmp_path / "in.pth").read_bytes()
    before = os.umask(0o022)
    try:
        out = convert(tmp_path / "in.pth", tmp_path / f"out{ending}")
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "in.pth").read_bytes() == original


def test_convert_writes_a_part_of_a_tensor_alone(source, target, tmp_path):
    state = {name: torch.stack([value, value])[1] for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "in.pth")
    for ending in ("pth", "safetensors"):
        out = convert(tmp_path / "in.pth", tmp_path / f"out.{ending}")
        assert out.stat().st_size < 0.6 * (tmp_path / "in.pth").stat().st_size
        load_checkpoint(target, out)
        assert same(target, source)


def test_convert_refuses_other_endings(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "in.pth")
    with pytest.raises(ValueError, match="must end in"):
        convert(tmp_path / "in.pth", tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="which is read"):
        convert(tmp_path / "in.pth", tmp_path / "in.pth")
