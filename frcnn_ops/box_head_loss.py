"""The losses of a box head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def box_head_loss(
    outputs: Tensor,
    labels: Tensor,
    rois: Tensor,
    targets: Tensor,
    counts: Tensor,
    stds: Sequence[float],
    classes: int,
    mode: str = "l1",
    weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classification and box loss of sampled boxes, straight from the head's outputs, and its accuracy.

    Cross-entropy of the logits of all samples, and of the positive ones either the L1 distance of the deltas
    of their class to those that encode the target, or an IoU loss of the box that these decode to. Both are
    divided by the number of samples of all images, at least one.

    Args:
        outputs: [B * S, C + 1 + 4 * C] of any floating type: the logits of C classes and, last, background,
            then four deltas of each class; or [B * S, C + 1 + 4], with deltas for all classes.
        labels, rois, targets, counts: what :func:`frcnn_ops.sample_proposals` returns, with C as background.
            A label that is no class is left out.
        stds: what a delta of 1 stands for, one per delta.
        classes: C.
        mode: "l1", or the IoU loss, with the constants that are its defaults in :func:`frcnn_ops.iou_loss`
            and its family: "iou" (the logarithm), "giou", "diou", "ciou" or "bounded_iou".
        weight: of the box loss.

    Returns:
        The two losses, and the percentage of samples whose best class, the first one of equal ones, is the
        label: scalars, float64 for float64 outputs and otherwise float32. The losses are differentiable with
        respect to ``outputs``. Sums over samples are taken in float64 in a fixed order.

    Raises:
        RuntimeError: for other shapes, dtypes or modes, devices that differ, or a weight below 0.

    Source: Girshick 2015 (Fast R-CNN).
    """
    return torch.ops.frcnn_ops.box_head_loss(
        outputs, labels, rois, targets, counts, stds, classes, mode, weight
    )


@torch.library.register_fake("frcnn_ops::box_head_loss")
def _(outputs, labels, rois, targets, counts, stds, classes, mode, weight):
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    return tuple(outputs.new_empty((), dtype=dtype) for _ in range(3))


@torch.library.register_fake("frcnn_ops::box_head_loss_backward")
def _(by_class, by_box, outputs, labels, rois, targets, counts, stds, classes, mode, weight):
    return outputs.new_empty(outputs.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.stds, ctx.classes, ctx.mode, ctx.weight = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, by_class, by_box, by_accuracy):
    settings = ctx.stds, ctx.classes, ctx.mode, ctx.weight
    grad = torch.ops.frcnn_ops.box_head_loss_backward(by_class, by_box, *ctx.saved_tensors, *settings)
    return grad, *[None] * 8


torch.library.register_autograd("frcnn_ops::box_head_loss", _backward, setup_context=_setup_context)
