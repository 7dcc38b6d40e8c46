"""Soft-NMS (Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    method: Literal["linear", "gaussian"],
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Instead of removing boxes that overlap a better one of their group, lower their scores.

    boxes [N, 4], scores [N], groups int64 [N]. "linear" multiplies a score by 1 - IoU where IoU exceeds the
    threshold, "gaussian" by exp(-IoU² / sigma) everywhere. Returns the indices of the boxes that still
    score at least min_score, best first, and the lowered scores [N] of all.

    All groups advance together, one box of each per step, so the number of steps is the size of the
    largest group.
    """
    if not len(boxes):
        return groups, scores
    table = _table(groups)  # [groups, members], padded with -1
    present = table >= 0
    members = boxes[table.clamp(min=0)]
    current = scores[table.clamp(min=0)].masked_fill(~present, 0.0)
    waiting = present.clone()
    every = torch.arange(len(table), device=boxes.device)
    for _ in range(table.shape[1]):
        best = current.masked_fill(~waiting, -1.0).argmax(1)
        chosen = waiting[every, best]
        waiting[every, best] = False
        overlap = _iou(members[every, best][:, None], members)
        if method == "linear":
            factor = torch.where(overlap > iou_threshold, 1 - overlap, 1.0)
        else:
            factor = torch.exp(-(overlap**2) / sigma)
        current = torch.where(waiting & chosen[:, None], current * factor, current)
        waiting &= current >= min_score
        if not waiting.any():
            break
    lowered = torch.empty_like(scores)
    lowered[table[present]] = current[present]
    order = lowered.argsort(descending=True, stable=True)
    return order[lowered[order] >= min_score], lowered


def _table(groups: Tensor) -> Tensor:
    """int64 [number of groups, size of the largest]: each group's indices, padded with -1."""
    _, row, sizes = groups.unique(return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    column = torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[row[order]]
    table = groups.new_full((len(sizes), int(sizes.max())), -1)
    table[row[order], column] = order
    return table


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise IoU of boxes that broadcast against each other; 0 for boxes without area."""
    overlap = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = overlap.clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
