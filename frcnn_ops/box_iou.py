"""Pairwise intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of ``a`` with every box of ``b``.

    Args:
        a: [N, 4] float32 or float64, x1 y1 x2 y2 in pixels.
        b: [M, 4] of the same dtype and device.

    Returns:
        [N, M] in [0, 1]. Pairs without a positive union, or with a NaN coordinate, have IoU 0. Not
        differentiable: for training use :func:`frcnn_ops.iou_loss`.

    Raises:
        RuntimeError: for other shapes, or for dtypes or devices that differ.
    """
    return torch.ops.frcnn_ops.box_iou(a, b)


@torch.library.register_fake("frcnn_ops::box_iou")
def _(a, b):
    return a.new_empty(a.shape[0], b.shape[0])
