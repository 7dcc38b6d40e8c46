"""Random samples, and norms folded into convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check


def _mixed(v: int) -> int:
    """SplitMix64's finalizer."""
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    v = (v ^ (v >> 27)) * 0x94D049BB133111EB & MASK
    return v ^ (v >> 31)


def shuffled(place: int, size: int, key: int) -> int:
    """Which of `size` things comes at a place, in the order that a key stands for: swap or not, 32 times."""
    for step in range(32):
        drawn = _mixed(key + GOLDEN * step & MASK)
        partner = ((drawn >> 32) * size // 2**32 - place) % size
        if _mixed(drawn + 0xD1342543DE82EF95 * (max(place, partner) + 1) & MASK) >> 63:
            place = partner
    return place


MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def _drawn(candidates: Tensor, wanted: int, key: int) -> Tensor:
    if wanted >= len(candidates):
        return candidates
    places = [shuffled(place, len(candidates), key) for place in range(wanted)]
    return candidates[torch.tensor(places, dtype=torch.int64, device=candidates.device)]


def sample_anchors(gt_index, seed, samples, most_positive) -> tuple[Tensor, Tensor]:
    check("samples", "sample_anchors", samples, most_positive)
    images, slots = len(gt_index), min(samples, gt_index.shape[1])
    index, counts = gt_index.new_full((images, slots), -1), gt_index.new_zeros(images, 2)
    for image in range(images):
        first, second = (
            _mixed(_mixed(seed.item() & MASK) + GOLDEN * (2 * image + kind + 1) & MASK) for kind in (0, 1)
        )
        positive = _drawn((gt_index[image] > 0).nonzero().flatten(), min(most_positive, slots), first)
        negative = _drawn((gt_index[image] == 0).nonzero().flatten(), slots - len(positive), second)
        index[image, : len(positive) + len(negative)] = torch.cat([positive, negative])
        counts[image, 0], counts[image, 1] = len(positive), len(negative)
    return index, counts


def sample_proposals(
    proposals, scores, gt_index, gts, gt_labels, gt_counts, seed, samples, most_positive, background
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, most = gts.shape[:2]
    own = torch.arange(1, most + 1, device=gts.device).expand(images, most)
    usable = (own <= gt_counts[:, None]) & (gts[..., 2:] > gts[..., :2]).all(2)
    absent = (scores == -math.inf) | (gt_index > most)
    assigned = torch.cat([own.where(usable, -1), gt_index.masked_fill(absent, -1)], 1)
    boxes = torch.cat([gts, proposals], 1)
    index, counts = sample_anchors(assigned, seed, samples, most_positive)
    rois = boxes.new_tensor([0, 0, 0, 1, 1]).repeat(*index.shape, 1)
    labels, targets = torch.full_like(index, background), boxes.new_zeros(*index.shape, 4)
    for image in range(images):
        rois[image, :, 0] = image
        for slot, candidate in enumerate(index[image].tolist()):
            if candidate >= 0:
                rois[image, slot, 1:] = boxes[image, candidate]
            targets[image, slot] = rois[image, slot, 1:]
            if candidate >= 0 and assigned[image, candidate] > 0:
                gt = assigned[image, candidate] - 1
                targets[image, slot], labels[image, slot] = gts[image, gt], gt_labels[image, gt]
    return rois, labels, targets, counts


def fold_norms(weights, gains, shifts, means, variances, eps, dtype) -> list[Tensor]:
    folded, biases = [], []
    for weight, gain, shift, mean, variance in zip(weights, gains, shifts, means, variances, strict=True):
        scale = gain / (variance + eps).sqrt()
        folded.append((weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(dtype))
        biases.append((shift - mean * scale).to(dtype))
    return folded + biases
