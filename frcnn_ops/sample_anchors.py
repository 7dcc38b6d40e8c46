"""A random subset of each image's anchors to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check


def sample_anchors(gt_index: Tensor, seed: Tensor, samples: int, most_positive: int) -> tuple[Tensor, Tensor]:
    """Draw up to ``samples`` anchors of each image, at most ``most_positive`` positive; negatives fill up.

    Every subset of the sizes that result is as likely as any other. What is drawn depends on ``seed``, the
    image's number and ``gt_index`` alone: it is the same on every device. Where all positives, or all
    negatives, are taken, they stay in their order.

    Args:
        gt_index: int64 [B, N] as :func:`frcnn_ops.assign_max_iou` returns it: below 0 not to be drawn, 0
            negative, above 0 positive.
        seed: int64 [], on the same device: any number.
        samples, most_positive: per image.

    Returns:
        index int64 [B, S], S = min(samples, N), into the anchors: positives, then negatives, then -1; and
        counts int64 [B, 2] of both. Not differentiable; no shape depends on the data and nothing
        synchronizes.

    Raises:
        RuntimeError: for other shapes, dtypes or devices that differ, numbers below 0, or ``most_positive``
            above ``samples``.

    Source: Hoang, Morris, Rogaway 2012 (swap-or-not shuffle).
    """
    return torch.ops.frcnn_ops.sample_anchors(gt_index, seed, samples, most_positive)


@torch.library.register_fake("frcnn_ops::sample_anchors")
def _(gt_index, seed, samples, most_positive):
    check("samples", "sample_anchors", samples, most_positive)
    images, anchors = gt_index.shape
    return gt_index.new_empty(images, min(samples, anchors)), gt_index.new_empty(images, 2)
