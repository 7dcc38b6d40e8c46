"""A random subset of each image's proposals and ground-truth boxes, and what each of it is to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check


def sample_proposals(
    proposals: Tensor,
    scores: Tensor,
    gt_index: Tensor,
    gts: Tensor,
    gt_labels: Tensor,
    gt_counts: Tensor,
    seed: Tensor,
    samples: int,
    most_positive: int,
    background: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw up to ``samples`` candidates of each image, at most ``most_positive`` positive; negatives fill up.

    The candidates of an image are its ground-truth boxes that have an area, each of which belongs to itself,
    and its proposals. How they are drawn: see :func:`frcnn_ops.sample_anchors`.

    Args:
        proposals: [B, P, 4] float32, x1 y1 x2 y2 in pixels.
        scores: [B, P] float32; -inf marks an absent proposal.
        gt_index: int64 [B, P], what :func:`frcnn_ops.assign_max_iou` says of the proposals; an index beyond G
            counts as -1.
        gts: [B, G, 4] float32, padded.
        gt_labels: int64 [B, G].
        gt_counts: int64 [B], how many rows of ``gts`` are real.
        seed: int64 [], on the same device: any number.
        samples, most_positive: per image.
        background: the label of negatives.

    Returns:
        With S = min(samples, G + P): rois [B, S, 5], the image's number and the box; labels int64 [B, S];
        targets [B, S, 4], the ground-truth box of a positive, the box itself of a negative; and counts int64
        [B, 2] of positives and negatives, which come in this order. An unused slot is a box of one pixel in
        the corner, labeled background. Not differentiable; no shape depends on the data and nothing
        synchronizes.

    Raises:
        RuntimeError: for other shapes, dtypes or devices that differ, numbers below 0, or ``most_positive``
            above ``samples``.
    """
    return torch.ops.frcnn_ops.sample_proposals(
        proposals.detach(),
        scores.detach(),
        gt_index,
        gts,
        gt_labels,
        gt_counts,
        seed,
        samples,
        most_positive,
        background,
    )


@torch.library.register_fake("frcnn_ops::sample_proposals")
def _(proposals, scores, gt_index, gts, gt_labels, gt_counts, seed, samples, most_positive, background):
    check("samples", "sample_proposals", samples, most_positive)
    images, slots = len(gts), min(samples, gts.shape[1] + proposals.shape[1])
    return (
        proposals.new_empty(images, slots, 5),
        gt_index.new_empty(images, slots),
        proposals.new_empty(images, slots, 4),
        gt_index.new_empty(images, 2),
    )
