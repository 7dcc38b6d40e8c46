"""torchvision's and detectron2's weights: names, class order, anchors and boxes, by their own formulas."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_recipe import small

import frcnn
import frcnn_ops
from frcnn.checkpoint.convert import convert
from frcnn.checkpoint.load import CheckpointError, load_checkpoint, read_checkpoint
from frcnn.zoo.coco import COCO_CATEGORY_IDS, COCO_CLASSES

HEADS = "roi_head.bbox_head"


@pytest.fixture(autouse=True)
def quiet():
    """Each conversion warns of what differs; the tests that look for it ask for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def random_model(recipe, num_classes):
    torch.manual_seed(0)
    model = frcnn.build(recipe, num_classes=num_classes)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.001, 2)
        elif not name.endswith("num_batches_tracked"):
            value.add_(torch.randn(value.shape) * 0.05)
    return model


def torchvision_names(state, style="new"):
    """Our names as torchvision writes them (the pyramid's blocks were renamed in 2022)."""
    block = ".0" if style == "new" else ""
    conv = ".0.0" if style == "new" else ""
    renamed = OrderedDict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        for old, new in {
            r"^backbone\.": "backbone.body.",
            r"^neck\.lateral_convs\.(\d)\.conv": rf"backbone.fpn.inner_blocks.\1{block}",
            r"^neck\.fpn_convs\.(\d)\.conv": rf"backbone.fpn.layer_blocks.\1{block}",
            r"^rpn_head\.rpn_conv": f"rpn.head.conv{conv}",
            r"^rpn_head\.rpn_cls": "rpn.head.cls_logits",
            r"^rpn_head\.rpn_reg": "rpn.head.bbox_pred",
            r"^roi_head\.bbox_head\.shared_fcs\.0": "roi_heads.box_head.fc6",
            r"^roi_head\.bbox_head\.shared_fcs\.1": "roi_heads.box_head.fc7",
            r"^roi_head\.bbox_head\.fc_cls": "roi_heads.box_predictor.cls_score",
            r"^roi_head\.bbox_head\.fc_reg": "roi_heads.box_predictor.bbox_pred",
        }.items():
            name = re.sub(old, new, name)
        renamed[name] = value.clone()
    return renamed


def torchvision_state(recipe, classes, style="new"):
    """A file of torchvision's, background first, with ``classes`` classes besides it."""
    model = random_model(recipe, classes)
    state = torchvision_names(model.state_dict(), style)
    for leaf in ("weight", "bias"):
        key = f"roi_heads.box_predictor.cls_score.{leaf}"
        state[key] = state[key].roll(1, 0)
        key = f"roi_heads.box_predictor.bbox_pred.{leaf}"
        background = torch.randn(4, *state[key].shape[1:])
        state[key] = torch.cat([background, state[key]])
    return model, state


@pytest.mark.parametrize("style", ["new", "old"])
def test_torchvision_round_trip(style, small_recipe):
    model, state = torchvision_state(small_recipe, 90, style)
    loaded = frcnn.build(small_recipe, num_classes=90)
    with pytest.warns(UserWarning, match="not aligned"):
        report = load_checkpoint(loaded, {"model": state, "epoch": 25})
    assert report.dialect == "torchvision"
    for name, value in model.state_dict().items():
        if ".bn" not in name and "downsample.1" not in name:
            assert torch.equal(loaded.state_dict()[name], value), name


def test_torchvisions_norms_without_eps_do_the_same(small_recipe):
    model, state = torchvision_state(small_recipe, 90)
    loaded = frcnn.build(small_recipe, num_classes=90)
    load_checkpoint(loaded, state)
    x = torch.randn(2, 64, 5, 5)
    norm = model.backbone.bn1
    mean, variance, weight, bias = (
        value[:, None, None] for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    without = (x - mean) / variance.sqrt() * weight + bias
    assert torch.allclose(loaded.backbone.bn1.eval()(x), without, rtol=1e-5, atol=1e-5)


def torchvision_decode(codes, boxes):
    """The box coder of torchvision's box head: weights 10, 10, 5, 5, sizes clamped at log(1000/16)."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + widths / 2, boxes[:, 1] + heights / 2
    dx, dy, dw, dh = codes[:, 0] / 10, codes[:, 1] / 10, codes[:, 2] / 5, codes[:, 3] / 5
    dw, dh = dw.clamp(max=math.log(1000 / 16)), dh.clamp(max=math.log(1000 / 16))
    x, y = dx * widths + x, dy * heights + y
    w, h = dw.exp() * widths, dh.exp() * heights
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def test_torchvisions_coco_classes_keep_their_boxes_and_scores(small_recipe, random_boxes):
    _, state = torchvision_state(small_recipe, 90)
    model = frcnn.build(small_recipe)
    load_checkpoint(model, state)
    assert model.class_names == COCO_CLASSES
    pooled = torch.randn(20, 16, 7, 7)
    boxes = random_boxes(20)
    prefix = "roi_heads."
    hidden = F.relu(
        F.linear(
            pooled.flatten(1), state[f"{prefix}box_head.fc6.weight"], state[f"{prefix}box_head.fc6.bias"]
        )
    )
    hidden = F.relu(
        F.linear(hidden, state[f"{prefix}box_head.fc7.weight"], state[f"{prefix}box_head.fc7.bias"])
    )
    prefix += "box_predictor."
    logits = F.linear(hidden, state[f"{prefix}cls_score.weight"], state[f"{prefix}cls_score.bias"])
    codes = F.linear(hidden, state[f"{prefix}bbox_pred.weight"], state[f"{prefix}bbox_pred.bias"]).view(
        20, 91, 4
    )

    ours, deltas, _ = model.roi_head.bbox_head(pooled)
    used = [*COCO_CATEGORY_IDS, 0]
    assert torch.allclose(ours.softmax(1), logits[:, used].softmax(1), atol=1e-6)
    for category in (1, 18, 90):
        label = COCO_CATEGORY_IDS.index(category)
        decoded = frcnn_ops.decode_boxes(
            boxes, deltas.view(20, 80, 4)[:, label].contiguous(), model.config.roi_head.stds
        )
        assert torch.allclose(decoded, torchvision_decode(codes[:, category], boxes), atol=1e-3), category


def test_torchvisions_fine_tuned_classes(small_recipe):
    model, state = torchvision_state(small_recipe, 2)
    loaded = frcnn.build(small_recipe, num_classes=2)
    load_checkpoint(loaded, state)
    assert torch.equal(loaded.roi_head.bbox_head.fc_reg.weight, model.roi_head.bbox_head.fc_reg.weight)
    assert loaded.class_names == ()


def test_torchvisions_anchors_differ_by_rounding_alone():
    anchors = frcnn_ops.grid_anchors([(1, 1)] * 5, (4, 8, 16, 32, 64))
    for level, size in enumerate((32, 64, 128, 256, 512)):
        ratios = torch.tensor([0.5, 1.0, 2.0])
        h, w = ratios.sqrt() * size, size / ratios.sqrt()
        exact = torch.stack([-w, -h, w, h], 1) / 2
        assert torch.allclose(anchors[level], exact, atol=1e-4)
        assert (anchors[level] - exact.round()).abs().max() <= 0.5


def test_other_torchvision_detectors_are_refused(small_recipe):
    _, state = torchvision_state(small_recipe, 90)
    state["backbone.fpn.inner_blocks.0.1.weight"] = torch.ones(16)
    with pytest.raises(CheckpointError, match="fasterrcnn_resnet50_fpn_v2"):
        load_checkpoint(frcnn.build(small_recipe), state)


def test_torchvision_needs_a_pytorch_style_model(small_recipe):
    _, state = torchvision_state(small_recipe, 90)
    caffe = frcnn.build(small(frcnn.recipe("faster_rcnn_r50_caffe_fpn_1x_coco")))
    with pytest.raises(CheckpointError, match="faster_rcnn_r50_fpn_1x_coco"):
        load_checkpoint(caffe, state)


# detectron2


def detectron2_state(model):
    """Our names as detectron2 writes them, with the entries that its older files hold besides."""
    renamed = OrderedDict()
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rules = {
            r"^backbone\.conv1\.": "backbone.bottom_up.stem.conv1.",
            r"^backbone\.bn1\.": "backbone.bottom_up.stem.conv1.norm.",
            r"^rpn_head\.rpn_conv": "proposal_generator.rpn_head.conv",
            r"^rpn_head\.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
            r"^rpn_head\.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
            r"^roi_head\.bbox_head\.shared_fcs\.0": "roi_heads.box_head.fc1",
            r"^roi_head\.bbox_head\.shared_fcs\.1": "roi_heads.box_head.fc2",
            r"^roi_head\.bbox_head\.fc_cls": "roi_heads.box_predictor.cls_score",
            r"^roi_head\.bbox_head\.fc_reg": "roi_heads.box_predictor.bbox_pred",
        }
        for stage in range(4):
            rules |= {
                rf"^backbone\.layer{stage + 1}\.": f"backbone.bottom_up.res{stage + 2}.",
                rf"^neck\.lateral_convs\.{stage}\.conv": f"backbone.fpn_lateral{stage + 2}",
                rf"^neck\.fpn_convs\.{stage}\.conv": f"backbone.fpn_output{stage + 2}",
            }
        rules |= {
            r"\.bn(\d)\.": r".conv\1.norm.",
            r"\.downsample\.0\.": ".shortcut.",
            r"\.downsample\.1\.": ".shortcut.norm.",
        }
        for old, new in rules.items():
            name = re.sub(old, new, name)
        renamed[name] = value.clone()
    renamed["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    renamed["pixel_std"] = torch.ones(3, 1, 1)
    for level, size in enumerate((32, 64, 128, 256, 512)):
        cells = []
        for ratio in (0.5, 1.0, 2.0):
            w = math.sqrt(size**2 / ratio)
            h = ratio * w
            cells.append([-w / 2, -h / 2, w / 2, h / 2])
        renamed[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.tensor(cells)
    return renamed


@pytest.fixture
def caffe_recipe():
    return small(frcnn.recipe("faster_rcnn_r50_caffe_fpn_1x_coco"))


@pytest.mark.parametrize("form", ["pkl", "pth", "bare"])
def test_detectron2_round_trip(form, caffe_recipe, tmp_path):
    model = random_model(caffe_recipe, 80)
    state = detectron2_state(model)
    path = tmp_path / f"model.{form}"
    if form == "pkl":
        content = {"model": {n: v.numpy() for n, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
        path.write_bytes(pickle.dumps(content))
    elif form == "pth":
        torch.save({"model": state, "optimizer": {}, "iteration": 89999}, path)
    else:
        torch.save(state, path)
    loaded = frcnn.build(caffe_recipe)
    with pytest.warns(UserWarning, match="Pillow"):
        report = load_checkpoint(loaded, path)
    assert report.dialect == "detectron2"
    assert loaded.class_names == (COCO_CLASSES if form == "pkl" else ())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_detectron2_needs_a_caffe_style_model(small_recipe, caffe_recipe):
    state = detectron2_state(random_model(caffe_recipe, 80))
    with pytest.raises(CheckpointError, match="faster_rcnn_r50_caffe_fpn_1x_coco"):
        load_checkpoint(frcnn.build(small_recipe), state)


@pytest.mark.parametrize("change", ["pixel_std", "proposal_generator.anchor_generator.cell_anchors.2"])
def test_another_detectron2_configuration_is_refused(change, caffe_recipe):
    state = detectron2_state(random_model(caffe_recipe, 80))
    state[change] = state[change] * 57
    with pytest.raises(CheckpointError, match=r"set (DataConfig|RPNConfig)"):
        load_checkpoint(frcnn.build(caffe_recipe), state)


def test_converting_other_dialects_writes_ours(caffe_recipe, small_recipe, tmp_path):
    theirs = random_model(caffe_recipe, 80)
    torch.save({"model": detectron2_state(theirs)}, tmp_path / "d2.pth")
    convert(tmp_path / "d2.pth", tmp_path / "d2.safetensors", caffe_recipe)
    assert set(read_checkpoint(tmp_path / "d2.safetensors").tensors) == {
        name for name in theirs.state_dict() if not name.endswith("num_batches_tracked")
    }
    _, state = torchvision_state(small_recipe, 90)
    torch.save(state, tmp_path / "tv.pth")
    convert(tmp_path / "tv.pth", tmp_path / "tv.safetensors")
    converted = read_checkpoint(tmp_path / "tv.safetensors")
    assert converted.class_names == COCO_CLASSES
    load_checkpoint(frcnn.build(replace(small_recipe)), converted)
