"""From the box head's outputs to the best detections of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check


def select_detections(
    probabilities: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    present: Tensor,
    sizes: Tensor,
    scales: Tensor,
    stds: Sequence[float],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Threshold, decode, clip, NMS within each class, and the best of all classes.

    Args:
        probabilities: [B, P, C + 1] float32, of C classes and the background; a class counts where its
            probability exceeds ``score_threshold``, so NaN never does.
        deltas: [B, P, 4 * C] float32, in the classes' order, or [B, P, 4] for all classes.
        proposals: [B, P, 4] float32, x1 y1 x2 y2 in pixels of the network's input.
        present: bool [B, P], which of them exist.
        sizes: [B, 2] float32, (height, width) that boxes are clipped to.
        scales: [B, 2] float32, (x, y) factors that clipped boxes are divided by, to bring them back to the
            original image; NMS compares the divided ones.
        stds: what a delta of 1 stands for, one per delta.
        score_threshold, iou_threshold: in [0, 1]; a box is suppressed if its IoU with a kept one is larger.
        max_detections: D, how many are returned per image.

    Returns:
        boxes [B, D, 4], scores [B, D], labels int64 [B, D], rows int64 [B, D], the proposal that each is made
        from, and counts int64 [B]. Best first; equal scores by proposal, then by class. Unused ones are 0, 0,
        -1 and -1. Not differentiable; no shape depends on the data and nothing synchronizes.

    Raises:
        RuntimeError: for shapes, dtypes, devices and numbers other than the above, and, on CUDA, for more
            than 4096 proposals or detections per image (2048 on compute capability 7.5).
    """
    return torch.ops.frcnn_ops.select_detections(
        probabilities.detach(),
        deltas.detach(),
        proposals.detach(),
        present,
        sizes,
        scales,
        stds,
        score_threshold,
        iou_threshold,
        max_detections,
    )


@torch.library.register_fake("frcnn_ops::select_detections")
def _(probabilities, deltas, proposals, present, sizes, scales, *numbers):
    check("selection", *numbers)
    shape = probabilities.shape[0], numbers[-1]
    boxes, scores = probabilities.new_empty(*shape, 4), probabilities.new_empty(shape)
    labels, rows = (probabilities.new_empty(shape, dtype=torch.int64) for _ in range(2))
    return boxes, scores, labels, rows, probabilities.new_empty(shape[0], dtype=torch.int64)
