"""Anchors, overlaps, box coding and assignment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check

MAX_LOG_RATIO = abs(math.log(16 / 1000))


def base_anchors(stride, scales, ratios, center_offset, device="cpu") -> Tensor:
    """Anchors of one position at the origin, ratio-major -> [A, 4] float32."""
    h_ratios = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
    w_ratios = 1 / h_ratios
    scales = torch.tensor(scales, dtype=torch.float32, device=device)
    half_w = 0.5 * (stride * w_ratios[:, None] * scales[None, :]).flatten()
    half_h = 0.5 * (stride * h_ratios[:, None] * scales[None, :]).flatten()
    center = center_offset * stride
    return torch.stack([center - half_w, center - half_h, center + half_w, center + half_h], dim=1)


def grid_anchors(sizes, strides, scales, ratios, center_offset, device, image_sizes=None) -> Tensor:
    check("grid_anchors", sizes, strides, scales, ratios, center_offset)
    levels = []
    for level, stride in enumerate(strides):
        height, width = sizes[2 * level : 2 * level + 2]
        y = torch.arange(height, dtype=torch.float32, device=device) * stride
        x = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        anchors = (shifts + base_anchors(stride, scales, ratios, center_offset, device)).reshape(-1, 4)
        if image_sizes is not None:
            position = shifts[:, 0, [1, 0]].repeat_interleave(len(scales) * len(ratios), dim=0)
            inside = (position < image_sizes[:, None]).all(dim=2)  # nowhere, where a size is NaN
            anchors = torch.where(inside[..., None], anchors, math.nan)
        levels.append(anchors)
    return torch.cat(levels, dim=-2)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def _divide_or_zero(n: Tensor, d: Tensor) -> Tensor:
    positive = d > 0
    return torch.where(positive, n / torch.where(positive, d, 1), 0)


def _at_least(v: Tensor, floor: float) -> Tensor:
    """``v.clamp(min=floor)``, but ``floor`` for NaN."""
    return torch.where(v >= floor, v, floor)


def _clip(v: Tensor, low: float, high: float) -> Tensor:
    """``v.clamp(low, high)``, but a NaN limit does not clip."""
    return torch.where(v < low, low, torch.where(v > high, high, v))


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    inter = _intersection(a[:, None], b[None, :])
    return _divide_or_zero(inter, _area(a)[:, None] + _area(b)[None, :] - inter)


def box_iof(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over the area of ``a`` -> [N, M]; 0 where that overflows."""
    part = _divide_or_zero(_intersection(a[:, None], b[None, :]), _area(a)[:, None].expand(-1, len(b)))
    return torch.where(part <= 1, part, 0)


def encode_boxes(boxes: Tensor, targets: Tensor, stds) -> Tensor:
    size = boxes[:, 2:] - boxes[:, :2]
    target_size = targets[:, 2:] - targets[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    target_center = (targets[:, :2] + targets[:, 2:]) * 0.5
    deltas = torch.cat([(target_center - center) / size, (target_size / size).log()], dim=1)
    return deltas / deltas.new_tensor(stds)


def decode_boxes(boxes: Tensor, deltas: Tensor, stds, max_shape) -> Tensor:
    deltas = deltas.reshape(len(boxes), deltas.shape[1] // 4, 4) * deltas.new_tensor(stds)
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    center = ((boxes[:, :2] + boxes[:, 2:]) * 0.5)[:, None]
    center = center + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    decoded = torch.cat([center - half, center + half], dim=-1)
    if max_shape is not None:
        height, width = max_shape
        limits = [width, height, width, height]
        decoded = torch.stack([_clip(decoded[..., i], 0.0, float(limits[i])) for i in range(4)], dim=-1)
    return decoded.flatten(1)


def assign_max_iou(
    boxes,
    gts,
    gt_counts,
    ignore,
    ignore_counts,
    pos_iou,
    neg_iou,
    min_pos_iou,
    match_low_quality,
    ignore_iof,
) -> tuple[Tensor, Tensor]:
    gt_index, max_iou = [], []
    for image, count in enumerate(gt_counts.tolist()):
        own = boxes if boxes.dim() == 2 else boxes[image]
        index = torch.full((len(own),), -1, dtype=torch.int64, device=own.device)
        overlaps = box_iou(gts[image, :count], own)
        nan = own.isnan().any(dim=1)
        if count == 0 or len(own) == 0:
            gt_index.append(torch.zeros_like(index).masked_fill(nan, -1))
            max_iou.append(own.new_zeros(len(own)).masked_fill(nan, -1))
            continue
        overlaps[:, nan] = -1
        if ignore is not None and ignore_iof > 0 and ignore_counts[image] > 0:
            covered = (box_iof(own, ignore[image, : ignore_counts[image]]) > ignore_iof).any(dim=1)
            overlaps[:, covered] = -1
        best, best_gt = overlaps.max(dim=0)
        index[(best >= 0) & (best < neg_iou)] = 0
        positive = best >= pos_iou
        index[positive] = best_gt[positive] + 1
        if match_low_quality:
            for gt in range(count):
                if overlaps[gt].max() >= min_pos_iou:
                    index[overlaps[gt] == overlaps[gt].max()] = gt + 1
        gt_index.append(index)
        max_iou.append(best)
    if not gt_index:
        shape = (0, boxes.shape[-2])
        return boxes.new_zeros(shape, dtype=torch.int64), boxes.new_zeros(shape)
    return torch.stack(gt_index), torch.stack(max_iou)
