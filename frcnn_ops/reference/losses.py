"""IoU losses, and the losses of the two heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import _area, _at_least, _divide_or_zero, _intersection, decode_boxes, encode_boxes


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


def _used_slots(counts: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """bool [B, S]: positives, and both kinds."""
    positives = counts[:, 0].clamp(0, slots)
    used = positives + torch.minimum(counts[:, 1].clamp(min=0), slots - positives)
    place = torch.arange(slots, device=counts.device)
    return place < positives[:, None], place < used[:, None]


def rpn_loss(maps, anchors, gts, gt_index, index, counts, stds) -> tuple[Tensor, Tensor]:
    images, n = gt_index.shape
    per_cell = maps[0].shape[1] // 5
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    rows = [level.to(wide).permute(0, 2, 3, 1).flatten(1, 2) for level in maps]
    logits = torch.cat([level[..., :per_cell].flatten(1) for level in rows], 1)
    deltas = torch.cat([level[..., per_cell:].unflatten(2, (per_cell, 4)).flatten(1, 2) for level in rows], 1)
    anchors = anchors.expand(images, n, 4).to(wide)
    positive, used = _used_slots(counts, index.shape[1])
    places = positive.sum(1), used.sum(1)
    factor = (places[0].clamp(min=1) + (places[1] - places[0]).clamp(min=1)).sum().clamp(min=1)
    of_class = of_box = logits[:, :0].sum()  # zero, with a gradient
    for image in range(images):
        own = used[image] & (index[image] >= 0) & (index[image] < n)
        rows = index[image][own]
        gt = gt_index[image][rows] - 1
        learns = positive[image][own] & (gt >= 0) & (gt < gts.shape[1])
        logit = logits[image][rows]
        of_class = (
            of_class + (logit.clamp(min=0) - logit.where(learns, 0) + (-logit.abs()).exp().log1p()).sum()
        )
        rows, gt = rows[learns], gt[learns]
        wanted = encode_boxes(anchors[image][rows], gts[image][gt].to(wide), stds)
        of_box = of_box + (deltas[image][rows] - wanted).abs().sum()
    return of_class / factor, of_box / factor


def box_head_loss(
    outputs, labels, rois, targets, counts, stds, classes, mode, weight
) -> tuple[Tensor, Tensor, Tensor]:
    positive, used = (slots.flatten() for slots in _used_slots(counts, labels.shape[1]))
    divisor = used.sum().clamp(min=1)
    labels, boxes, targets = labels.flatten(), rois.flatten(0, 1)[:, 1:], targets.flatten(0, 1)
    used = used & (labels >= 0) & (labels <= classes)
    positive = positive & used & (labels < classes)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    logits, deltas = outputs[:, : classes + 1], outputs[:, classes + 1 :]

    own = logits[used].gather(1, labels[used, None])
    of_class = F.cross_entropy(logits[used], labels[used], reduction="sum")
    earlier = torch.arange(classes + 1, device=labels.device) < labels[used, None]
    right = torch.where(earlier, logits[used] < own, logits[used] <= own).all(1).sum()

    column = torch.zeros_like(labels) if deltas.shape[1] == 4 and classes > 1 else labels
    deltas = deltas[positive].unflatten(1, (-1, 4))[torch.arange(int(positive.sum())), column[positive]]
    boxes, targets = (t[positive].to(outputs.dtype) for t in (boxes, targets))
    if mode == "l1":
        of_box = (deltas - encode_boxes(boxes, targets, stds)).abs().sum()
    else:
        named = {"iou": "log", "bounded_iou": "bounded"}.get(mode, mode)
        eps = 1e-3 if mode == "bounded_iou" else 1e-6
        of_box = iou_loss(deltas, targets, None, boxes, stds, named, eps, 0.2, "sum")
    return of_class / divisor, weight * of_box / divisor, 100.0 * right.to(outputs.dtype) / divisor
