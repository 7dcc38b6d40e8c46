"""Operations and bytes of each stage: what the floor is made of.

A layer's floor is max(operations / matrix rate, bytes / copy bandwidth), and a stage's the sum over its
layers: every layer reads its input and its weights once and writes its output once. Norms, activations and
additions count as part of the layer before them. A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frcnn.config import ModelConfig, Recipe
from frcnn.detector import FasterRCNN

STAGES = ("preprocess", "backbone", "FPN", "RPN", "proposals", "RoIAlign", "head", "NMS")


@dataclass(frozen=True)
class Work:
    """One layer's operations and bytes."""

    operations: float
    bytes: float

    def floor(self, matrix_rate: float, bandwidth: float) -> float:
        """Seconds that a machine of these rates needs at least."""
        return max(self.operations / matrix_rate, self.bytes / bandwidth)


def floor(layers: Sequence[Work], matrix_rate: float, bandwidth: float) -> float:
    return sum(layer.floor(matrix_rate, bandwidth) for layer in layers)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def stage_work(
    recipe: Recipe,
    batch: int,
    height: int,
    width: int,
    rois: Tensor | None = None,
    element_bytes: int = 4,
) -> dict[str, list[Work]]:
    """Layers of each stage for images of height x width that need no resizing.

    rois: the proposals [K, 4] of the batch, whose sizes decide how often RoIAlign samples; without them, 1000
    proposals per image with two samples per bin and axis. element_bytes: size of a feature value.
    """
    config, data = recipe.model, recipe.data
    height, width = (-(-side // data.pad_divisor) * data.pad_divisor for side in (height, width))
    with torch.device("meta"):
        model = FasterRCNN(config, data).eval()
        images = torch.empty(batch, 3, height, width)
        boxes = batch * config.rpn.post_nms_test if rois is None else len(rois)
        stages: list[Tensor] = []
        levels: list[Tensor] = []
        work = {
            "preprocess": [Work(2 * images.numel(), images.numel() * (1 + 4))],
            "backbone": _layers(model, lambda: stages.extend(model.backbone(images)), element_bytes),
            "FPN": _layers(model, lambda: levels.extend(model.neck(stages)), element_bytes),
            "RPN": _layers(model, lambda: model.rpn_head(levels), element_bytes),
        }
        pooled = torch.empty(boxes, config.fpn_channels * config.roi_head.pool_size**2)
        work["head"] = _layers(model, lambda: model.roi_head.bbox_head(pooled), element_bytes)
    work["proposals"] = [_proposals(config, batch, levels)]
    work["RoIAlign"] = [_roi_align(config, levels, rois, boxes, element_bytes)]
    work["NMS"] = [_detections(config, boxes)]
    return {stage: work[stage] for stage in STAGES}


def _layers(model: nn.Module, run: Callable[[], object], element_bytes: int) -> list[Work]:
    """Work of the convolutions and linear layers that a call runs, on tensors without data."""
    found: list[Work] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        operations = 2 * output.numel() * weight[0].numel()
        found.append(Work(operations, element_bytes * (inputs[0].numel() + weight.numel() + output.numel())))

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def _proposals(config: ModelConfig, batch: int, features: Sequence[Tensor]) -> Work:
    """Read every score once; decode, sort and compare the best of each level pairwise."""
    anchors = len(config.rpn.scales) * len(config.rpn.ratios)
    counts = [level.shape[-2] * level.shape[-1] * anchors for level in features]
    kept = [min(count, config.rpn.pre_nms_test) for count in counts]
    pairs = sum(count * (count - 1) / 2 for count in kept)
    return Work(batch * (12 * pairs + 20 * sum(kept)), batch * 4 * (sum(counts) + 9 * sum(kept)))


def _roi_align(
    config: ModelConfig, features: Sequence[Tensor], rois: Tensor | None, boxes: int, element_bytes: int
) -> Work:
    """Four multiply-adds per sample and channel; reads the levels once, writes the pooled boxes once."""
    head, levels = config.roi_head, features[:-1]
    bins = head.pool_size**2
    if head.sampling_ratio > 0 or rois is None:
        samples = boxes * bins * max(head.sampling_ratio, 2) ** 2
    else:
        sides = (rois[:, 2:] - rois[:, :2]).double()
        scale = (sides.prod(1).clamp(min=0).sqrt() / head.finest_scale + 1e-6).log2().floor()
        level = scale.clamp(0, len(levels) - 1).long().cpu()
        stride = torch.tensor(config.strides[:-1], dtype=torch.float64)[level]
        grid = (sides.cpu() / stride[:, None] / head.pool_size).ceil().clamp(min=1)
        samples = float(grid.prod(1).sum()) * bins
    read = sum(level.numel() for level in levels)
    written = boxes * bins * config.fpn_channels
    return Work(8 * samples * config.fpn_channels, element_bytes * (read + written))


def _detections(config: ModelConfig, boxes: int) -> Work:
    """Softmax over the classes and a threshold; what passes is too little to count."""
    classes = config.num_classes + 1
    return Work(5 * boxes * classes, 4 * boxes * classes)


def operations(recipe: Recipe, height: int, width: int) -> float:
    """Operations of a whole call on one image, from input to detections."""
    work = stage_work(recipe, 1, height, width)
    return sum(
        layer.operations for stage, layers in work.items() if stage != "preprocess" for layer in layers
    )
