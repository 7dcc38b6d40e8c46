"""The recipes say what the published table says."""

from __future__ import annotations

import dataclasses

import pytest

import frcnn
from frcnn.checkpoint.download import sha256_prefix
from frcnn.config import Recipe
from frcnn.zoo import BACKBONE_WEIGHTS
from frcnn.zoo.coco import COCO_CATEGORY_IDS, COCO_CLASSES
from frcnn.zoo.table import models, table

# name without prefix and suffix: depth, groups, style, epochs, decays, loss, Mem, fps, AP, sha256 prefix
PUBLISHED = {
    "r50_caffe_fpn_1x": (50, 1, "caffe", 12, (8, 11), "l1", 3.8, None, 37.8, "c5925ee5"),
    "r50_fpn_1x": (50, 1, "pytorch", 12, (8, 11), "l1", 4.0, 21.4, 37.4, "047c8118"),
    "r50_fpn_2x": (50, 1, "pytorch", 24, (16, 22), "l1", None, None, 38.4, "a5d8aa15"),
    "r101_caffe_fpn_1x": (101, 1, "caffe", 12, (8, 11), "l1", 5.7, None, 39.8, "b269e9dd"),
    "r101_fpn_1x": (101, 1, "pytorch", 12, (8, 11), "l1", 6.0, 15.6, 39.4, "f513f705"),
    "r101_fpn_2x": (101, 1, "pytorch", 24, (16, 22), "l1", None, None, 39.8, "1d2dac9c"),
    "x101_32x4d_fpn_1x": (101, 32, "pytorch", 12, (8, 11), "l1", 7.2, 13.8, 41.2, "cff10310"),
    "x101_32x4d_fpn_2x": (101, 32, "pytorch", 24, (16, 22), "l1", None, None, 41.2, "64a12c0b"),
    "x101_64x4d_fpn_1x": (101, 64, "pytorch", 12, (8, 11), "l1", 10.3, 9.4, 42.1, "833ee192"),
    "x101_64x4d_fpn_2x": (101, 64, "pytorch", 24, (16, 22), "l1", None, None, 41.6, "5961fa95"),
    "r50_fpn_iou_1x": (50, 1, "pytorch", 12, (8, 11), "iou", None, None, 37.9, "fdd207f3"),
    "r50_fpn_giou_1x": (50, 1, "pytorch", 12, (8, 11), "giou", None, None, 37.6, "0eada910"),
    "r50_fpn_bounded_iou_1x": (50, 1, "pytorch", 12, (8, 11), "bounded_iou", None, None, 37.4, "98ad993b"),
    "r50_caffe_fpn_mstrain_2x": (50, 1, "caffe", 24, (16, 23), "l1", 4.3, None, 39.7, "10b2de58"),
    "r50_caffe_fpn_mstrain_3x": (50, 1, "caffe", 36, (28, 34), "l1", 4.3, None, 40.2, "30042637"),
}


def test_all_rows_are_there_in_order():
    assert frcnn.list_recipes() == [f"faster_rcnn_{row}_coco" for row in PUBLISHED]


@pytest.mark.parametrize("row", PUBLISHED)
def test_a_recipe_is_its_row(row):
    depth, groups, style, epochs, decays, loss, memory, fps, box_ap, prefix = PUBLISHED[row]
    recipe = frcnn.recipe(f"faster_rcnn_{row}_coco")
    backbone = recipe.model.backbone
    assert (backbone.depth, backbone.groups, backbone.style) == (depth, groups, style)
    assert backbone.base_width == (64 if groups == 1 else 4)
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)
    assert (recipe.schedule.epochs, recipe.schedule.decay_epochs) == (epochs, decays)
    assert recipe.model.roi_head.box_loss == loss
    assert recipe.model.roi_head.box_loss_weight == (1.0 if loss == "l1" else 10.0)
    assert (recipe.published.memory_gb, recipe.published.fps, recipe.published.box_ap) == (
        memory,
        fps,
        box_ap,
    )
    assert sha256_prefix(recipe.published.checkpoint) == prefix
    folder = recipe.name.replace("_iou_1x", "_1x").replace("_giou_1x", "_1x").replace("_bounded_1x", "_1x")
    assert recipe.published.checkpoint.startswith(
        f"v2.0/faster_rcnn/{folder}/{recipe.name.removesuffix('_coco')}"
    )


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_input_is_of_the_backbones_style(row):
    recipe = frcnn.recipe(f"faster_rcnn_{row}_coco")
    if recipe.model.backbone.style == "caffe":
        expected = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), False)
        pretrained = f"open-mmlab://detectron2/resnet{recipe.model.backbone.depth}_caffe"
    else:
        expected = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True)
        groups = recipe.model.backbone.groups
        pretrained = f"torchvision://resnet{recipe.model.backbone.depth}"
        if groups > 1:
            pretrained = f"open-mmlab://resnext101_{groups}x4d"
    assert (recipe.data.mean, recipe.data.std, recipe.data.rgb) == expected
    assert recipe.data.size == (1333, 800)
    assert recipe.data.train_short_sides == ((640, 672, 704, 736, 768, 800) if "mstrain" in row else (800,))
    assert recipe.model.backbone.pretrained == pretrained
    assert pretrained in BACKBONE_WEIGHTS


def test_every_backbone_file_says_its_hash():
    for weights in BACKBONE_WEIGHTS.values():
        assert len({address.rsplit("/", 1)[-1] for address in weights.addresses}) == 1
        assert len(sha256_prefix(weights.addresses[0])) == 8


def test_variants_are_fields():
    base = frcnn.recipe("faster_rcnn_r50_fpn_giou_1x_coco")
    roi_head = dataclasses.replace(base.model.roi_head, box_loss="diou", class_agnostic=True)
    backbone = dataclasses.replace(base.model.backbone, depth=18, pretrained="torchvision://resnet18")
    model = dataclasses.replace(base.model, backbone=backbone, roi_head=roi_head)
    detector = frcnn.build(dataclasses.replace(base, model=model), num_classes=3)
    assert detector.roi_head.bbox_head.fc_reg.out_features == 4
    assert detector.backbone.channels == (64, 128, 256, 512)


def test_mmdetection_3_spelling_is_understood():
    assert frcnn.recipe("faster-rcnn_r50_fpn_1x_coco.py") is frcnn.recipe("faster_rcnn_r50_fpn_1x_coco")


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(KeyError, match="faster_rcnn_r50_fpn_1x_coco"):
        frcnn.recipe("faster_rcnn_r50_fpn_1x")


def test_recipes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        frcnn.recipe("faster_rcnn_r50_fpn_1x_coco").name = "other"


def test_the_table_prints_every_row_and_figure(capsys):
    models()
    lines = capsys.readouterr().out.splitlines()
    assert lines == table().splitlines()
    assert len(lines) == 1 + len(PUBLISHED) + 1 + 2
    (row,) = [line for line in lines if line.startswith("faster_rcnn_x101_64x4d_fpn_1x_coco ")]
    assert row.split()[1:] == ["X-101-64x4d-FPN", "pytorch", "12", "l1", "10.3", "9.4", "42.1"]


def test_one_recipe_prints_resolved(capsys):
    models("faster_rcnn_r50_caffe_fpn_mstrain_3x_coco")
    out = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert field.name == "name" or f"{field.name}:" in out
    assert "decay_epochs: (28, 34)" in out
    assert "box_ap: 40.2" in out and "mAP-0.398" in out
    assert "sha256 begins: 30042637" in out


def test_coco_classes():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(COCO_CATEGORY_IDS) == 80
    assert COCO_CATEGORY_IDS == tuple(sorted(set(COCO_CATEGORY_IDS)))
    assert set(range(1, 91)) - set(COCO_CATEGORY_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    named = dict(zip(COCO_CATEGORY_IDS, COCO_CLASSES, strict=True))
    assert (named[1], named[13], named[44], named[90]) == ("person", "stop sign", "bottle", "toothbrush")
