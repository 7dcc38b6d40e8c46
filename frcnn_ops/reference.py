"""The obvious pure-torch version of every operator: the oracle of the tests and the benchmarks.

Each function takes the arguments of the operator of the same name in ``csrc/bindings`` and returns what
it returns. Nothing here is fast, nothing is clever, and whatever should have a gradient gets it from plain
autograd. Numbers that are not finite follow the kernels' rules, which the operators' docstrings state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .extension import _C
from .reference_images import conv_epilogue, normalize_images, resize_images  # noqa: F401

MAX_LOG_RATIO = abs(math.log(16 / 1000))
MOST_CELLS = 2**20
"""An RoI with an edge this far from the origin of its map, in cells, pools to zero."""


# ---- anchors ---------------------------------------------------------------------------------------------


def base_anchors(stride, scales, ratios, center_offset, device="cpu") -> Tensor:
    """Anchors of one position at the origin, ratio-major -> [A, 4] float32."""
    h_ratios = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
    w_ratios = 1 / h_ratios
    scales = torch.tensor(scales, dtype=torch.float32, device=device)
    half_w = 0.5 * (stride * w_ratios[:, None] * scales[None, :]).flatten()
    half_h = 0.5 * (stride * h_ratios[:, None] * scales[None, :]).flatten()
    center = center_offset * stride
    return torch.stack([center - half_w, center - half_h, center + half_w, center + half_h], dim=1)


def grid_anchors(sizes, strides, scales, ratios, center_offset, device) -> Tensor:
    _C.check_grid_anchors(sizes, strides, scales, ratios, center_offset)
    levels = []
    for level, stride in enumerate(strides):
        height, width = sizes[2 * level : 2 * level + 2]
        y = torch.arange(height, dtype=torch.float32, device=device) * stride
        x = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((shifts + base_anchors(stride, scales, ratios, center_offset, device)).reshape(-1, 4))
    return torch.cat(levels)


# ---- overlap ---------------------------------------------------------------------------------------------


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


# ---- box coding ------------------------------------------------------------------------------------------


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


# ---- RoIAlign --------------------------------------------------------------------------------------------


def roi_levels(rois: Tensor, levels: int, finest_scale: float) -> Tensor:
    """The pyramid level of each RoI, int64 [K]."""
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (size / finest_scale + 1e-6).log2().floor()
    return level.nan_to_num(nan=0, neginf=0).clamp(0, levels - 1).long()


def _axis_weights(start: Tensor, extent: Tensor, bins: int, sampling_ratio: int, size: int) -> Tensor:
    """How much each of ``size`` feature cells contributes to each bin along one axis -> [bins, size].

    Bilinear interpolation, its border rules and the mean over samples are all products of one factor per
    axis, so RoIAlign is two small matrix products.
    """
    weights = start.new_zeros(bins, size)
    samples = sampling_ratio if sampling_ratio > 0 else math.ceil((extent / bins).item())
    for bin in range(bins):
        for i in range(samples):
            at = start + bin * (extent / bins) + (i + 0.5) * (extent / bins) / samples
            if size == 0 or at < -1 or at > size:
                continue
            at = at.clamp(0, size - 1)
            low = int(at)
            high = min(low + 1, size - 1)
            weights[bin, low] += (1 - (at - low)) / samples
            weights[bin, high] += (at - low) / samples
    return weights


def _pool_bin(feature: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """[C]: only the cells that the bin samples count, so that others may hold what they like."""
    rows, columns = along_y.nonzero().flatten(), along_x.nonzero().flatten()
    return feature[:, rows][:, :, columns] @ along_x[columns] @ along_y[rows]


def roi_align(features, rois, output_size, scales, sampling_ratio, aligned, finest_scale) -> Tensor:
    _C.check_pooling("roi_align", output_size, scales, sampling_ratio, finest_scale)
    (out_h, out_w), (batch, channels) = output_size, features[0].shape[:2]
    levels = roi_levels(rois, len(features), finest_scale).tolist()
    compute = torch.promote_types(features[0].dtype, torch.float32)
    pooled = []
    for roi, level in zip(rois.to(compute), levels, strict=True):
        if not 0 <= roi[0] < batch:
            raise IndexError(f"roi_align: image {roi[0]} of a batch of {batch}")
        edges = roi[1:] * scales[level] - (0.5 if aligned else 0.0)
        if not (edges.abs() < MOST_CELLS).all():
            pooled.append(features[0].new_zeros(channels, out_h, out_w))
            continue
        x1, y1, x2, y2 = edges
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = w.clamp(min=1), h.clamp(min=1)
        feature = features[level][int(roi[0])].to(compute)
        along_y = _axis_weights(y1, h, out_h, sampling_ratio, feature.shape[1])
        along_x = _axis_weights(x1, w, out_w, sampling_ratio, feature.shape[2])
        bins = [_pool_bin(feature, row, column) for row in along_y for column in along_x]
        pooled.append(torch.stack(bins, dim=1).view(channels, out_h, out_w).to(features[0].dtype))
    return torch.stack(pooled) if pooled else features[0].new_zeros(0, channels, out_h, out_w)


# ---- NMS -------------------------------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, groups, iou_threshold: float) -> Tensor:
    # NaN last, where torch sorts it first
    nan = scores.isnan()
    order = scores.masked_fill(nan, -math.inf).argsort(descending=True, stable=True)
    order = order[nan[order].int().argsort(stable=True)]
    overlap = box_iou(boxes, boxes) > iou_threshold
    if groups is not None:
        overlap &= groups[:, None] == groups[None, :]
    kept, suppressed = [], torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in order.tolist():
        if not suppressed[i]:
            kept.append(i)
            suppressed |= overlap[i]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int) -> tuple[Tensor, Tensor]:
    _C.check_max_keep(max_keep)
    indices = torch.full((len(boxes), max_keep), -1, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for segment in range(len(boxes)):
        present = (scores[segment] != -math.inf).nonzero().flatten()
        kept = present[nms(boxes[segment, present], scores[segment, present], None, iou_threshold)]
        kept = kept[:max_keep]
        indices[segment, : len(kept)] = kept
        counts[segment] = len(kept)
    return indices, counts


def select_proposals(
    logits, deltas, image_sizes, strides, scales, ratios, center_offset, stds,
    min_size, iou_threshold, pre_nms, count,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _C.check_proposals(strides, scales, ratios, center_offset, stds, min_size, iou_threshold, pre_nms, count)
    boxes = image_sizes.new_zeros(len(image_sizes), count, 4)
    scores = image_sizes.new_full((len(image_sizes), count), -math.inf)
    for image, (height, width) in enumerate(image_sizes.tolist()):
        found, found_scores = [], []
        for level, stride in enumerate(strides):
            sizes = list(logits[level].shape[2:])
            anchors = grid_anchors(sizes, [stride], scales, ratios, center_offset, image_sizes.device)
            logit = logits[level][image].permute(1, 2, 0).flatten()
            delta = deltas[level][image].permute(1, 2, 0).reshape(-1, 4)
            proposing = (logit > -math.inf).nonzero().flatten()
            best = proposing[logit[proposing].sort(descending=True, stable=True).indices[:pre_nms]]
            box = decode_boxes(anchors[best], delta[best], stds, (height, width))
            valid = ((box[:, 2:] - box[:, :2]) > min_size).all(1)
            box, logit = box[valid], logit[best[valid]]
            kept = nms(box, logit, None, iou_threshold)
            found.append(box[kept])
            found_scores.append(logit[kept])
        logit, order = torch.cat(found_scores).sort(descending=True, stable=True)
        used = min(count, len(order))
        boxes[image, :used] = torch.cat(found)[order[:used]]
        scores[image, :used] = logit[:used]
    return boxes, scores


def select_detections(
    probabilities, deltas, proposals, present, sizes, scales,
    stds, score_threshold, iou_threshold, max_detections,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    _C.check_selection(stds, score_threshold, iou_threshold, max_detections)
    images, count, columns = probabilities.shape
    boxes = probabilities.new_zeros(images, max_detections, 4)
    scores = probabilities.new_zeros(images, max_detections)
    labels = torch.full((images, max_detections), -1, dtype=torch.int64, device=boxes.device)
    rows, counts = labels.clone(), labels.new_zeros(images)
    for image in range(images):
        found = []
        decoded = decode_boxes(proposals[image], deltas[image], stds, sizes[image].tolist())
        decoded = decoded.view(count, deltas.shape[2] // 4, 4) / scales[image].repeat(2)
        for label in range(columns - 1):
            score, box = probabilities[image, :, label], decoded[:, label % max(decoded.shape[1], 1)]
            wanted = ((score > score_threshold) & present[image]).nonzero().flatten()
            kept = wanted[nms(box[wanted], score[wanted], None, iou_threshold)].tolist()
            found += [(-score[row].item(), row, label, box[row]) for row in kept]
        found.sort(key=lambda one: one[:3])
        for place, (score, row, label, box) in enumerate(found[:max_detections]):
            boxes[image, place], scores[image, place] = box, -score
            labels[image, place], rows[image, place] = label, row
        counts[image] = min(len(found), max_detections)
    return boxes, scores, labels, rows, counts


# ---- IoU losses ------------------------------------------------------------------------------------------


def _pair_loss(pred: Tensor, target: Tensor, mode: str, eps: float) -> Tensor:
    inter = _intersection(pred, target)
    joint = _area(pred) + _area(target) - inter
    if mode in ("log", "linear", "square"):
        iou = _at_least(inter / _at_least(joint, 1e-6), eps)
        return {"log": lambda: -iou.log(), "linear": lambda: 1 - iou, "square": lambda: 1 - iou**2}[mode]()

    enclosing = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
    enclosing = _at_least(enclosing, 0.0)
    if mode == "giou":
        joint = _at_least(joint, eps)
        hull = _at_least(enclosing.prod(dim=1), eps)
        return 1 - (inter / joint - (hull - joint) / hull)

    iou = _divide_or_zero(inter, joint + eps)
    diagonal = enclosing.square().sum(dim=1) + eps
    offset = (target[:, :2] + target[:, 2:]) - (pred[:, :2] + pred[:, 2:])
    similarity = iou - offset.square().sum(dim=1) / 4 / diagonal
    if mode == "diou":
        return 1 - similarity

    def aspect(boxes):
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1] + eps
        point = (w == 0) & (h == 0)
        return (w / torch.where(point, 1, h)).atan()

    v = 4 / math.pi**2 * (aspect(target) - aspect(pred)).square()
    with torch.no_grad():
        alpha = torch.where(iou > 0.5, _divide_or_zero(v, 1 - iou + v), 0)
    return 1 - (similarity - alpha * v).clamp(-1, 1)


def _bounded_loss(pred: Tensor, target: Tensor, beta: float, eps: float) -> Tensor:
    size = (pred[:, 2:] - pred[:, :2]).clamp(min=0)
    target_size = (target[:, 2:] - target[:, :2]).clamp(min=0)
    offset = (target[:, :2] + target[:, 2:]) * 0.5 - (pred[:, :2] + pred[:, 2:]) * 0.5
    distance = 2 * offset.abs()
    center = 1 - _divide_or_zero(target_size - distance, target_size + distance + eps).clamp(min=0)
    shrunk = _divide_or_zero(size, target_size + eps)
    scale = 1 - torch.minimum(target_size / (size + eps), shrunk)
    loss = torch.cat([center, scale], dim=1)
    return torch.where(loss < beta, 0.5 * loss * loss / beta, loss - 0.5 * beta)


def _finite_unless_coordinates_are_not(loss: Tensor, pred: Tensor, target: Tensor) -> Tensor:
    """What overflows counts as disjoint, a loss of 1; a coordinate that is not finite gives NaN."""
    finite = torch.cat([pred, target], dim=1).isfinite().all(dim=1, keepdim=True)
    return torch.where(finite, torch.where(loss.isfinite(), loss, 1), math.nan)


def iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction) -> Tensor:
    if boxes is not None:
        pred = decode_boxes(boxes, pred, stds, None)
    if mode == "bounded":
        loss = _finite_unless_coordinates_are_not(_bounded_loss(pred, target, beta, eps), pred, target)
        loss = loss if weight is None else loss * weight[:, None]
    else:
        loss = _pair_loss(pred, target, mode, eps)[:, None]
        loss = _finite_unless_coordinates_are_not(loss, pred, target)[:, 0]
        loss = loss if weight is None else loss * weight
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.numel(), 1)


# ---- assignment ------------------------------------------------------------------------------------------


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
        if count == 0 or len(own) == 0:
            gt_index.append(torch.zeros_like(index))
            max_iou.append(own.new_zeros(len(own)))
            continue
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
