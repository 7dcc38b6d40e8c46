"""Other programs' parameter names: torchvision's and detectron2's Faster R-CNN in ours.

Each conversion is exact for the numbers it keeps; what cannot be carried over is returned as notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frcnn.checkpoint.torch_file import CheckpointError
from frcnn.config import DataConfig, ModelConfig
from frcnn.zoo.coco import COCO_CATEGORY_IDS, COCO_CLASSES

Dialect = Literal["mmdetection", "mmdetection 1.x", "torchvision", "detectron2"]
NORM_EPS = 1e-5

_TORCHVISION = [
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.lateral_convs.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.fpn_convs.\1.conv.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn_head.rpn_conv.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn_head.rpn_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn_head.rpn_reg.\1"),
    (r"roi_heads\.box_head\.fc6\.(weight|bias)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(weight|bias)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"roi_head.bbox_head.fc_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"roi_head.bbox_head.fc_reg.\1"),
]

_TORCHVISION_NOTES = (
    "torchvision's batch norms are read with eps 0, as its COCO weights use them; a model that torchvision "
    "trained from ImageNet weights alone uses 1e-5, and then differs slightly",
    "torchvision rounds its base anchors to whole pixels (up to half a pixel per side); ours are not rounded",
    "torchvision's RoIAlign is not aligned (features half a pixel off) and takes 2 sampling points per bin: "
    "RoIHeadConfig.sampling_ratio=2 restores the points, the half pixel stays",
    "torchvision resizes float images and rounds sizes down; ours are resized by cv2 as uint8",
)

_DETECTRON2 = [
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.bn1.\1"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn_head.rpn_conv.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn_head.rpn_cls.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn_head.rpn_reg.\1"),
    (r"roi_heads\.box_head\.fc1\.(weight|bias)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    (r"roi_heads\.box_head\.fc2\.(weight|bias)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"roi_head.bbox_head.fc_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"roi_head.bbox_head.fc_reg.\1"),
]
for _stage in (2, 3, 4, 5):  # detectron2 counts stages from res2 and names levels after them
    _theirs, _ours = rf"backbone\.bottom_up\.res{_stage}\.(\d+)", rf"backbone.layer{_stage - 1}.\1"
    _DETECTRON2 += [
        (rf"{_theirs}\.shortcut\.weight", rf"{_ours}.downsample.0.weight"),
        (rf"{_theirs}\.shortcut\.norm\.(\w+)", rf"{_ours}.downsample.1.\2"),
        (rf"{_theirs}\.conv(\d)\.weight", rf"{_ours}.conv\2.weight"),
        (rf"{_theirs}\.conv(\d)\.norm\.(\w+)", rf"{_ours}.bn\2.\3"),
        (rf"backbone\.fpn_lateral{_stage}\.(\w+)", rf"neck.lateral_convs.{_stage - 2}.conv.\1"),
        (rf"backbone\.fpn_output{_stage}\.(\w+)", rf"neck.fpn_convs.{_stage - 2}.conv.\1"),
    ]

_DETECTRON2_NOTES = (
    "detectron2 resizes with Pillow, which smooths when it shrinks; ours are resized by cv2",
)


@dataclass(frozen=True)
class Converted:
    """Tensors under our names, the class names if they are known, and what differs."""

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def recognize(names: Iterable[str]) -> Dialect:
    """Whose parameter names these are; "mmdetection" unless they are clearly another's."""
    for name in names:
        if name.startswith("backbone.body."):
            return "torchvision"
        if name.startswith(("backbone.bottom_up.", "proposal_generator.")):
            return "detectron2"
        if name.startswith(("bbox_head.fc_cls", "bbox_head.shared_fcs")):
            return "mmdetection 1.x"
    return "mmdetection"


def from_torchvision(tensors: Mapping[str, Tensor], model: ModelConfig, data: DataConfig) -> Converted:
    """torchvision's ``fasterrcnn_resnet50_fpn`` (not its v2, nor MobileNet).

    Background moves from the first class to the last; 91 classes become COCO's 80 if the model has 80, by
    dropping the ids that COCO does not use. Input normalization is the same as pytorch style's.

    Raises:
        CheckpointError: another architecture, or a caffe-style model.
    """
    if model.backbone.style != "pytorch" or not data.rgb:
        raise CheckpointError(
            "torchvision's weights are pytorch style (RGB, stride in the 3x3): load them into a recipe of "
            "that style, such as faster_rcnn_r50_fpn_1x_coco"
        )
    if any(
        re.match(r"backbone\.fpn\.inner_blocks\.\d\.1\.|roi_heads\.box_head\.\d", name) for name in tensors
    ):
        raise CheckpointError(
            "torchvision's fasterrcnn_resnet50_fpn_v2 is another architecture (norms in the pyramid, a "
            "convolutional box head); only fasterrcnn_resnet50_fpn can be read"
        )
    renamed = _rename(tensors, _TORCHVISION)
    _fold_zero_eps(renamed)
    notes = list(_TORCHVISION_NOTES)
    class_names: tuple[str, ...] = ()
    logits = renamed.get("roi_head.bbox_head.fc_cls.weight")
    if logits is not None:
        order = list(range(1, len(logits)))
        if len(logits) == 91 and model.num_classes == len(COCO_CLASSES):
            order = list(COCO_CATEGORY_IDS)
            class_names = COCO_CLASSES
            notes.append(
                "91 classes became COCO's 80: the unused ids no longer share in the softmax, so scores can "
                "be higher by what those received"
            )
        _reorder_classes(renamed, order)
    return Converted(renamed, class_names, tuple(notes))


def from_detectron2(tensors: Mapping[str, Tensor], model: ModelConfig, data: DataConfig) -> Converted:
    """detectron2's R-50 and R-101 FPN: caffe style, BGR, std 1. Box head, anchors and coder are as ours.

    Raises:
        CheckpointError: the model is not caffe style, or the file's normalization or anchors are others.
    """
    if model.backbone.style != "caffe" or data.rgb:
        raise CheckpointError(
            "detectron2's weights are caffe style (BGR, stride in the first 1x1): load them into a recipe of "
            "that style, such as faster_rcnn_r50_caffe_fpn_1x_coco or faster_rcnn_r101_caffe_fpn_1x_coco"
        )
    kept = {}
    for name, value in tensors.items():
        if name in ("pixel_mean", "pixel_std"):
            wanted = torch.tensor(data.mean if name == "pixel_mean" else data.std)
            if not torch.allclose(value.flatten().float(), wanted, atol=1e-3):
                raise CheckpointError(
                    f"the file's {name} is {value.flatten().tolist()}, the model's {wanted.tolist()}: set "
                    "DataConfig to the file's"
                )
        elif "anchor_generator.cell_anchors" in name:
            _check_cell_anchors(int(name.rsplit(".", 1)[-1]), value, model)
        else:
            kept[name] = value
    return Converted(_rename(kept, _DETECTRON2), (), _DETECTRON2_NOTES)


def _rename(tensors: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Our names by the first rule that matches; a name that no rule knows stays as it is."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, name)
            if match:
                name = match.expand(replacement)
                break
        renamed[name] = value
    return renamed


def _fold_zero_eps(tensors: dict[str, Tensor]) -> None:
    """Scale batch norms that were used with eps 0 so that they do the same with ours: w·sqrt((v+eps)/v)."""
    for name in [name for name in tensors if name.endswith(".running_var")]:
        weight = name.removesuffix("running_var") + "weight"
        if weight in tensors:
            variance = tensors[name].double()
            factor = torch.sqrt((variance + NORM_EPS) / variance).where(variance > 0, 1.0)
            tensors[weight] = (tensors[weight].double() * factor).to(tensors[weight].dtype)


def _reorder_classes(tensors: dict[str, Tensor], order: list[int]) -> None:
    """Rows of the class layer: ``order``, then background (which was first); of the box layer: ``order``."""
    for leaf in ("weight", "bias"):
        logits = tensors.get(f"roi_head.bbox_head.fc_cls.{leaf}")
        deltas = tensors.get(f"roi_head.bbox_head.fc_reg.{leaf}")
        if logits is not None:
            tensors[f"roi_head.bbox_head.fc_cls.{leaf}"] = logits[[*order, 0]]
        if deltas is not None:
            per_class = deltas.reshape(-1, 4, *deltas.shape[1:])
            tensors[f"roi_head.bbox_head.fc_reg.{leaf}"] = per_class[order].flatten(0, 1)


def _check_cell_anchors(level: int, anchors: Tensor, model: ModelConfig) -> None:
    """detectron2 stores a level's anchors around the origin: they must be the ones this model uses."""
    sides = [scale * model.strides[level] for scale in model.rpn.scales]
    wanted = torch.tensor(
        [
            [-side / ratio**0.5 / 2, -side * ratio**0.5 / 2, side / ratio**0.5 / 2, side * ratio**0.5 / 2]
            for side in sides
            for ratio in model.rpn.ratios
        ]
    )
    if anchors.shape != wanted.shape or not torch.allclose(anchors.float(), wanted, atol=1e-3):
        raise CheckpointError(
            f"the file's anchors of level {level} differ from the model's: set RPNConfig.scales and ratios"
        )
