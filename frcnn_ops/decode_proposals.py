"""Proposal boxes from the deltas of a region proposal network, without storing an anchor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .extension import _C


def decode_proposals(
    deltas: Sequence[Tensor],
    indices: Sequence[Tensor],
    image_sizes: Tensor,
    strides: Sequence[float],
    scales: Sequence[float] = (8.0,),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    center_offset: float = 0.0,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The selected anchors of every level and image, decoded, clipped to their image and size-filtered.

    Args:
        deltas: one tensor [B, A * 4, H, W] per level, float32, float16 or bfloat16, any memory format; the
            channel of delta ``d`` of anchor ``a`` is ``a * 4 + d``.
        indices: one int64 tensor [B, k] per level, into the level's H * W * A anchors (position-major, as
            :func:`frcnn_ops.grid_anchors` orders them); k may differ between levels.
        image_sizes: [B, 2] float32, (height, width) in pixels of each image without its padding.
        strides: pixels per cell, one per level.
        scales, ratios, center_offset: the anchors, as in :func:`frcnn_ops.grid_anchors`.
        stds: what a delta of 1 stands for, one per delta.
        min_size: a proposal is valid if its width and height both exceed this many pixels.

    Returns:
        ``boxes`` [B, K, 4] float32 with K the sum of all k, levels in order, and ``valid`` [B, K] bool.
        Not differentiable: proposals are constants for what follows.

    Raises:
        RuntimeError: for lists that are empty or of different length, shapes or dtypes other than the above,
            numbers that are not positive, or 2**31 anchors or more in a level or chosen.
        IndexError: for an index out of range (CPU; elsewhere such a proposal is invalid).

    A NaN delta gives NaN coordinates, and a proposal that is not valid; a NaN image size does not clip.

    Source: Ren et al. 2015 (Faster R-CNN).
    """
    constants = [level.detach() for level in deltas]
    return torch.ops.frcnn_ops.decode_proposals(
        constants, indices, image_sizes, strides, scales, ratios, center_offset, stds, min_size
    )


@torch.library.register_fake("frcnn_ops::decode_proposals")
def _(deltas, indices, image_sizes, strides, scales, ratios, center_offset, stds, min_size):
    _C.check_anchors("decode_proposals", strides, scales, ratios, center_offset)
    batch, total = image_sizes.shape[0], sum(index.shape[1] for index in indices)
    boxes = image_sizes.new_empty(batch, total, 4)
    return boxes, image_sizes.new_empty(batch, total, dtype=torch.bool)
