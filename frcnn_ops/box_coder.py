"""Boxes as deltas against reference boxes, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def encode_boxes(boxes: Tensor, targets: Tensor, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move each box onto its target.

    ``dx = (target center - center) / width``, ``dw = log(target width / width)``, each divided by its std;
    likewise for y and height.

    Args:
        boxes: [N, 4] float32 or float64, x1 y1 x2 y2 in pixels.
        targets: [N, 4] of the same dtype and device.
        stds: what a delta of 1 stands for, one per delta.

    Returns:
        [N, 4]. A box or target without width or height gives infinite or NaN deltas. Not differentiable.

    Raises:
        RuntimeError: for other shapes, dtypes or devices that differ, or stds that are not four positive
            numbers.

    Source: Girshick et al. 2014 (R-CNN), appendix C.
    """
    return torch.ops.frcnn_ops.encode_boxes(boxes, targets, stds)


def decode_boxes(
    boxes: Tensor,
    deltas: Tensor,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    max_shape: tuple[int, int] | None = None,
) -> Tensor:
    """Boxes moved by their deltas; the inverse of :func:`encode_boxes`.

    ``dw`` and ``dh``, in units of log size, are clamped to ±log(1000 / 16).

    Args:
        boxes: [N, 4] float32 or float64, x1 y1 x2 y2 in pixels.
        deltas: [N, 4 * C] of the same dtype and device: C boxes per row, for class-specific regression.
        stds: what a delta of 1 stands for, one per delta.
        max_shape: (height, width) in pixels that the result is clipped to.

    Returns:
        [N, 4 * C], differentiable with respect to ``deltas`` (the boxes count as constants).
        What comes of a NaN is NaN, clipped or not.

    Raises:
        RuntimeError: for other shapes, dtypes or devices that differ, or stds that are not four positive
            numbers.

    Source: Girshick et al. 2014 (R-CNN), appendix C; clamp as in MMDetection's DeltaXYWHBBoxCoder.
    """
    return torch.ops.frcnn_ops.decode_boxes(boxes, deltas, stds, max_shape)


@torch.library.register_fake("frcnn_ops::encode_boxes")
def _(boxes, targets, stds):
    return boxes.new_empty(boxes.shape)


@torch.library.register_fake("frcnn_ops::decode_boxes")
def _(boxes, deltas, stds, max_shape):
    return deltas.new_empty(deltas.shape)


@torch.library.register_fake("frcnn_ops::decode_boxes_backward")
def _(grad, boxes, deltas, stds, max_shape):
    return deltas.new_empty(deltas.shape)


def _setup_context(ctx, inputs, output):
    boxes, deltas, ctx.stds, ctx.max_shape = inputs
    ctx.save_for_backward(boxes, deltas)


def _backward(ctx, grad):
    boxes, deltas = ctx.saved_tensors
    by_deltas = torch.ops.frcnn_ops.decode_boxes_backward(grad, boxes, deltas, ctx.stds, ctx.max_shape)
    return None, by_deltas, None, None


torch.library.register_autograd("frcnn_ops::decode_boxes", _backward, setup_context=_setup_context)
