"""NMS, proposals and detections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check
from .boxes import box_iou, decode_boxes, grid_anchors


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
    check("max_keep", max_keep)
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
    check("proposals", strides, scales, ratios, center_offset, stds, min_size, iou_threshold, pre_nms, count)
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
    check("selection", stds, score_threshold, iou_threshold, max_detections)
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
