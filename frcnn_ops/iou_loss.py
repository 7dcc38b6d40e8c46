"""Losses on the overlap of box pairs, fused with the decoding of deltas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_UNIT_STDS = (1.0, 1.0, 1.0, 1.0)


def iou_loss(
    pred: Tensor,
    target: Tensor,
    mode: str = "log",
    eps: float = 1e-6,
    reduction: str = "none",
    weight: Tensor | None = None,
    boxes: Tensor | None = None,
    stds: Sequence[float] = _UNIT_STDS,
) -> Tensor:
    """IoU loss of aligned box pairs: ``-log(IoU)``, ``1 - IoU`` or ``1 - IoU**2``.

    Args:
        pred: [N, 4] float32 or float64: boxes x1 y1 x2 y2 in pixels, or deltas if ``boxes`` is given.
        target: [N, 4] boxes of the same dtype and device.
        mode: "log", "linear" or "square".
        eps: the least IoU; below it the loss is constant.
        reduction: "none", "sum", or "mean" over all N pairs (weights do not count).
        weight: [N] factors, or None.
        boxes: [N, 4] that ``pred`` is decoded against, as :func:`frcnn_ops.decode_boxes` does, or None.
        stds: of the deltas.

    Returns:
        [N], or a scalar if reduced; the mean over no pairs is 0. Differentiable with respect to ``pred``.
        Loss and gradient are finite for all finite boxes (empty, inverted, identical, huge) and NaN where a
        coordinate is not finite. Sums do not depend on the number of threads.

    Raises:
        RuntimeError: for an unknown mode or reduction, other shapes, dtypes or devices that differ, or eps
            not positive.

    Source: Yu et al. 2016 (UnitBox); values as in MMDetection's IoULoss.
    """
    if mode not in ("log", "linear", "square"):
        raise ValueError(f"iou_loss: mode is 'log', 'linear' or 'square', not {mode!r}")
    return torch.ops.frcnn_ops.iou_loss(pred, target, weight, boxes, stds, mode, eps, 0.0, reduction)


def giou_loss(
    pred: Tensor,
    target: Tensor,
    eps: float = 1e-6,
    reduction: str = "none",
    weight: Tensor | None = None,
    boxes: Tensor | None = None,
    stds: Sequence[float] = _UNIT_STDS,
) -> Tensor:
    """Generalized IoU loss, ``1 - IoU + (hull - union) / hull``; ``eps`` is the least area in pixels².

    Arguments, result and errors as in :func:`iou_loss`. Source: Rezatofighi et al. 2019.
    """
    return torch.ops.frcnn_ops.iou_loss(pred, target, weight, boxes, stds, "giou", eps, 0.0, reduction)


def diou_loss(
    pred: Tensor,
    target: Tensor,
    eps: float = 1e-6,
    reduction: str = "none",
    weight: Tensor | None = None,
    boxes: Tensor | None = None,
    stds: Sequence[float] = _UNIT_STDS,
) -> Tensor:
    """Distance IoU loss, ``1 - IoU + (center distance / hull diagonal)**2``; ``eps`` is added to areas.

    Arguments, result and errors as in :func:`iou_loss`. Source: Zheng et al. 2020.
    """
    return torch.ops.frcnn_ops.iou_loss(pred, target, weight, boxes, stds, "diou", eps, 0.0, reduction)


def ciou_loss(
    pred: Tensor,
    target: Tensor,
    eps: float = 1e-6,
    reduction: str = "none",
    weight: Tensor | None = None,
    boxes: Tensor | None = None,
    stds: Sequence[float] = _UNIT_STDS,
) -> Tensor:
    """Complete IoU loss: distance IoU plus ``alpha * v``, where v compares the aspect ratios.

    ``alpha = v / (1 - IoU + v)`` for IoU > 0.5, else 0, and is a constant for the gradient.
    Arguments, result and errors as in :func:`iou_loss`. Source: Zheng et al. 2020.
    """
    return torch.ops.frcnn_ops.iou_loss(pred, target, weight, boxes, stds, "ciou", eps, 0.0, reduction)


def bounded_iou_loss(
    pred: Tensor,
    target: Tensor,
    beta: float = 0.2,
    eps: float = 1e-3,
    reduction: str = "none",
    weight: Tensor | None = None,
    boxes: Tensor | None = None,
    stds: Sequence[float] = _UNIT_STDS,
) -> Tensor:
    """Bounded IoU loss: for each of dx, dy, dw, dh an upper bound of the IoU, through smooth L1.

    ``beta`` is where smooth L1 turns linear; ``eps`` in pixels is added to sizes. Returns [N, 4] if not
    reduced, and "mean" divides by N * 4. Negative widths and heights count as 0. Other
    arguments and errors as in :func:`iou_loss`. Source: Tychsen-Smith and Petersson 2018.
    """
    return torch.ops.frcnn_ops.iou_loss(pred, target, weight, boxes, stds, "bounded", eps, beta, reduction)


@torch.library.register_fake("frcnn_ops::iou_loss")
def _(pred, target, weight, boxes, stds, mode, eps, beta, reduction):
    if reduction != "none":
        return pred.new_empty(())
    return pred.new_empty(pred.shape if mode == "bounded" else pred.shape[:1])


@torch.library.register_fake("frcnn_ops::iou_loss_backward")
def _(grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction):
    return pred.new_empty(pred.shape)


def _setup_context(ctx, inputs, output):
    pred, target, weight, boxes, *ctx.settings = inputs
    ctx.save_for_backward(pred, target, weight, boxes)


def _backward(ctx, grad):
    by_pred = torch.ops.frcnn_ops.iou_loss_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return by_pred, *[None] * 8


torch.library.register_autograd("frcnn_ops::iou_loss", _backward, setup_context=_setup_context)
