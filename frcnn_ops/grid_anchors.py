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
        device: where to make the anchors; the default device if None.

    Returns:
        One float32 tensor [H * W * A, 4] per level, x1 y1 x2 y2 in pixels, position-major; the
        ``A = len(ratios) * len(scales)`` anchors of a position are ratio-major.

    Raises:
        RuntimeError: for sizes and strides of different length, sizes below 0, a level of 2**31 anchors or
            more, or strides, scales or ratios that are empty or not positive.

    Source: Ren et al. 2015 (Faster R-CNN); layout as in MMDetection's AnchorGenerator.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    flat = [cells for size in sizes for cells in size]
    anchors = torch.ops.frcnn_ops.grid_anchors(flat, strides, scales, ratios, center_offset, device)
    per_cell = len(scales) * len(ratios)
    return list(anchors.split([height * width * per_cell for height, width in sizes]))


@torch.library.register_fake("frcnn_ops::grid_anchors")
def _(sizes, strides, scales, ratios, center_offset, device):
    check("grid_anchors", sizes, strides, scales, ratios, center_offset)
    cells = sum(sizes[2 * level] * sizes[2 * level + 1] for level in range(len(strides)))
    return torch.empty(cells * len(scales) * len(ratios), 4, dtype=torch.float32, device=device)
