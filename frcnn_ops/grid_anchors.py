"""Anchors of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check


def grid_anchors(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    scales: Sequence[float] = (8.0,),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    center_offset: float = 0.0,
    device: torch.device | str | None = None,
    image_sizes: Tensor | None = None,
) -> list[Tensor]:
    """Anchor boxes of every cell of every pyramid level.

    An anchor of ``ratio`` (height / width) and ``scale`` on a level of ``stride`` pixels has the area
    ``(stride * scale) ** 2`` and is centered at ``(x + center_offset) * stride``; nothing is rounded.

    Args:
        sizes: (height, width) in cells, one pair per level.
        strides: pixels per cell, one per level.
        scales: anchor size in strides.
        ratios: height / width.
        center_offset: place of the center inside a cell, 0 for its corner and 0.5 for its middle.
        device: where to make the anchors; that of ``image_sizes``, or the default device, if None.
        image_sizes: float32 [B, 2], (height, width) in pixels; an anchor whose position, the corner of its
            cell, is beyond them is NaN, so that :func:`frcnn_ops.assign_max_iou` ignores it.

    Returns:
        One float32 tensor [H * W * A, 4] per level, or [B, H * W * A, 4] with ``image_sizes``, x1 y1 x2 y2
        in pixels, position-major; the ``A = len(ratios) * len(scales)`` anchors of a position are
        ratio-major.

    Raises:
        RuntimeError: for sizes and strides of different length, sizes below 0, a level of 2**31 anchors or
            more, strides, scales or ratios that are empty or not positive, or other ``image_sizes``.

    Source: Ren et al. 2015 (Faster R-CNN); layout as in MMDetection's AnchorGenerator.
    """
    if device is None:
        device = torch.get_default_device() if image_sizes is None else image_sizes.device
    flat = [cells for size in sizes for cells in size]
    anchors = torch.ops.frcnn_ops.grid_anchors(
        flat, strides, scales, ratios, center_offset, torch.device(device), image_sizes
    )
    per_cell = len(scales) * len(ratios)
    return list(anchors.split([height * width * per_cell for height, width in sizes], dim=-2))


@torch.library.register_fake("frcnn_ops::grid_anchors")
def _(sizes, strides, scales, ratios, center_offset, device, image_sizes):
    check("grid_anchors", sizes, strides, scales, ratios, center_offset)
    cells = sum(sizes[2 * level] * sizes[2 * level + 1] for level in range(len(strides)))
    images = () if image_sizes is None else image_sizes.shape[:1]
    return torch.empty(*images, cells * len(scales) * len(ratios), 4, dtype=torch.float32, device=device)
