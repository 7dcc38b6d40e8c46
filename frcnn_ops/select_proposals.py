"""From a region proposal network's outputs to the proposals of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check


def select_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Tensor,
    strides: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[float],
    stds: Sequence[float],
    min_size: float,
    iou_threshold: float,
    pre_nms: int,
    count: int,
    center_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The best anchors of each level, decoded, clipped, filtered by size, after NMS; of these the best.

    Args:
        logits: one tensor [B, A, H, W] per level, float32, any memory format; A anchors per cell: ratios
            times scales. An anchor whose logit is NaN or -inf proposes nothing.
        deltas: one tensor [B, A * 4, H, W] per level, float32; the channel of delta ``d`` of anchor ``a`` is
            ``a * 4 + d``.
        image_sizes: [B, 2] float32, (height, width) in pixels that boxes are clipped to.
        strides: pixels per cell, one per level.
        scales, ratios, center_offset: the anchors, as in :func:`frcnn_ops.grid_anchors`.
        stds: what a delta of 1 stands for, one per delta.
        min_size: a proposal's width and height both exceed this many pixels; otherwise, and with a NaN
            coordinate, it is dropped and no other takes its place.
        iou_threshold: in [0, 1]; a box is suppressed if its IoU with a better one of its level is larger.
        pre_nms: how many anchors of a level are looked at: those with the best logits, equal ones by index.
        count: P, how many are returned per image.

    Returns:
        boxes [B, P, 4] float32, x1 y1 x2 y2 in pixels, and scores [B, P], their logits. Best first; equal
        ones by level, then by anchor. The unused end is 0 and -inf. Not differentiable: proposals are
        constants for what follows. No shape depends on the data and nothing synchronizes.

    Raises:
        RuntimeError: for lists of different length, shapes, dtypes, devices and numbers other than the above,
            2**31 anchors or more in a level, and, on CUDA, for more than 4096 as ``pre_nms`` or ``count``
            (2048 on compute capability 7.5).

    Source: Ren et al. 2015 (Faster R-CNN); Lin et al. 2017 (Feature Pyramid Networks).
    """
    return torch.ops.frcnn_ops.select_proposals(
        [level.detach() for level in logits],
        [level.detach() for level in deltas],
        image_sizes,
        strides,
        scales,
        ratios,
        center_offset,
        stds,
        min_size,
        iou_threshold,
        pre_nms,
        count,
    )


@torch.library.register_fake("frcnn_ops::select_proposals")
def _(logits, deltas, image_sizes, strides, *numbers):
    check("proposals", strides, *numbers)
    batch, count = image_sizes.shape[0], numbers[-1]
    return image_sizes.new_empty(batch, count, 4), image_sizes.new_empty(batch, count)
