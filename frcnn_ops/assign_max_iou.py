"""Assignment of boxes to ground truth by maximal IoU."""

from __future__ import annotations

import torch
from torch import Tensor


def assign_max_iou(
    boxes: Tensor,
    gts: Tensor,
    pos_iou: float,
    neg_iou: float,
    min_pos_iou: float = 0.0,
    match_low_quality: bool = True,
    ignore: Tensor | None = None,
    ignore_iof: float = -1.0,
    gt_counts: Tensor | None = None,
    ignore_counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Assign to each box the ground truth it overlaps most, or background, or neither.

    In this order, as MMDetection's MaxIoUAssigner:

    1. a box that has a NaN coordinate or is covered by an ``ignore`` region (intersection / box area >
       ``ignore_iof``) has IoU -1 with every ground truth;
    2. a box whose best IoU is in [0, ``neg_iou``) is background;
    3. a box whose best IoU is at least ``pos_iou`` takes that ground truth (the first one of a tie);
    4. with ``match_low_quality``, each ground truth whose best IoU reaches ``min_pos_iou`` takes every box
       that ties for it, whatever those boxes had before; a later ground truth overwrites an earlier one.
       (With ``min_pos_iou`` 0, a ground truth that overlaps nothing therefore takes everything.)

    No matrix of boxes by ground truths is made: memory is O(boxes + gts).

    Args:
        boxes: [N, 4] float32 or float64, x1 y1 x2 y2 in pixels; for a batch also [B, N, 4].
        gts: [G, 4] for one image, or [B, G, 4] padded; same dtype and device.
        pos_iou, neg_iou, min_pos_iou: thresholds in [0, 1].
        match_low_quality: whether step 4 happens.
        ignore: [I, 4] for one image, or [B, I, 4] padded, or None.
        ignore_iof: threshold of step 1; not positive turns it off.
        gt_counts: int64 [B], how many rows of ``gts`` are real; None means all. Batches only.
        ignore_counts: the same for ``ignore``.

    Returns:
        ``gt_index`` int64 (-1 neither, 0 background, k + 1 = ground truth k) and ``max_iou``, the best IoU
        of each box (-1 where step 1 says so): [N] each, or [B, N] for a batch.

    Neither is differentiable. A ground truth with a NaN coordinate overlaps nothing.

    Raises:
        RuntimeError: for other shapes, dtypes or devices that differ, thresholds outside [0, 1], a NaN
            ``ignore_iof``, or (on the CPU) a count that is not one of 0 to G.
    """
    batched = gts.dim() == 3
    if not batched:
        gts = gts[None]
        ignore = None if ignore is None else ignore[None]
    if gt_counts is None:
        gt_counts = torch.full((gts.shape[0],), gts.shape[1], dtype=torch.int64, device=gts.device)
    if ignore is not None and ignore_counts is None:
        ignore_counts = torch.full((ignore.shape[0],), ignore.shape[1], dtype=torch.int64, device=gts.device)
    gt_index, max_iou = torch.ops.frcnn_ops.assign_max_iou(
        boxes.detach(),
        gts,
        gt_counts,
        ignore,
        ignore_counts,
        pos_iou,
        neg_iou,
        min_pos_iou,
        match_low_quality,
        ignore_iof,
    )
    return (gt_index, max_iou) if batched else (gt_index[0], max_iou[0])


@torch.library.register_fake("frcnn_ops::assign_max_iou")
def _(
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
):
    shape = gts.shape[0], boxes.shape[-2]
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape)
