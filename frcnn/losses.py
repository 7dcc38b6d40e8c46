"""The detector's losses. Each takes every sampled slot and a mask, so that shapes never depend on the data.

Shape shorthand: R slots (sampled anchors or proposals), C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import frcnn_ops
from frcnn.config import BoxLoss, RoIHeadConfig


def objectness_loss(logits: Tensor, positive: Tensor, used: Tensor, average_factor: Tensor) -> Tensor:
    """Binary cross-entropy of logits [R] against positive [R] over the used slots, / average_factor."""
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (loss * used).sum() / average_factor


def class_loss(logits: Tensor, labels: Tensor, used: Tensor) -> Tensor:
    """Mean cross-entropy of logits [R, C + 1] against labels [R] (C is background) over the used slots."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (loss * used).sum() / used.sum().clamp(min=1)


def accuracy(logits: Tensor, labels: Tensor, used: Tensor) -> Tensor:
    """Percentage of used slots whose best class is the label."""
    correct = (logits.detach().argmax(1) == labels) & used
    return 100.0 * correct.sum() / used.sum().clamp(min=1)


def delta_loss(
    deltas: Tensor, boxes: Tensor, targets: Tensor, stds: tuple[float, ...], weight: Tensor
) -> Tensor:
    """Sum over slots of weight [R] times the L1 distance of deltas [R, 4] to those that encode targets.

    boxes, targets: [R, 4], the boxes that the deltas refer to and the ones that they should yield.
    """
    wanted = frcnn_ops.encode_boxes(boxes, targets, stds)
    return ((deltas - wanted).abs().sum(1) * weight).sum()


def box_loss(deltas: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor, config: RoIHeadConfig) -> Tensor:
    """The summed box loss of the recipe: L1 on deltas, or an IoU loss on the boxes that they decode to."""
    if config.box_loss == "l1":
        return delta_loss(deltas, boxes, targets, config.stds, weight)
    losses: dict[BoxLoss, Callable[..., Tensor]] = {
        "iou": frcnn_ops.iou_loss,
        "giou": frcnn_ops.giou_loss,
        "diou": frcnn_ops.diou_loss,
        "ciou": frcnn_ops.ciou_loss,
        "bounded_iou": frcnn_ops.bounded_iou_loss,
    }
    loss = losses[config.box_loss]
    return loss(deltas, targets, weight=weight, boxes=boxes, stds=config.stds, reduction="sum")
