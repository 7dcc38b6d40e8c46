"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keeps the best of every heap of overlapping boxes.

    Boxes are visited by descending score; each is kept unless its IoU with a box kept before it is greater
    than ``iou_threshold``.

    Args:
        boxes: [N, 4] float32 or float64, x1 y1 x2 y2 in pixels.
        scores: [N] of the same dtype and device. Of equal scores the lower index goes first; NaN goes last.
        iou_threshold: in [0, 1]. The test is ``inter / union > iou_threshold``, rounded in the dtype of the
            boxes, as :func:`frcnn_ops.box_iou` rounds it: an IoU equal to the threshold is kept.

    Returns:
        int64 [kept], indices into ``boxes``, best first. Boxes without area, or with a NaN coordinate,
        overlap nothing: they are kept and suppress nothing.

    Raises:
        RuntimeError: for other shapes, half precision, dtypes or devices that differ, or a threshold outside
            [0, 1].

    The number of results depends on the data; :func:`nms_padded` has a fixed shape.
    """
    return torch.ops.frcnn_ops.nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within groups (classes, levels, images), which never suppress each other's boxes.

    Args:
        boxes, scores, iou_threshold: as in :func:`nms`.
        groups: int64 [N], any values. They are compared, never added to coordinates, so the result is exactly
            that of one :func:`nms` per group.

    Returns:
        int64 [kept], indices into ``boxes`` of all groups together, best first.

    Raises:
        RuntimeError: as :func:`nms`, or if ``groups`` is not int64 [N].
    """
    return torch.ops.frcnn_ops.nms(boxes, scores, groups, iou_threshold)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int) -> tuple[Tensor, Tensor]:
    """:func:`nms` of S independent sets at once, with shapes that do not depend on the data.

    Args:
        boxes: [S, N, 4] float32 or float64, x1 y1 x2 y2 in pixels.
        scores: [S, N] of the same dtype and device; -inf marks an absent box, NaN goes last.
        iou_threshold: in [0, 1], as in :func:`nms`.
        max_keep: the most boxes to keep per set; the search stops there.

    Returns:
        indices int64 [S, max_keep] into the N boxes of each set, best first, padded with -1, and counts
        int64 [S].

    Raises:
        RuntimeError: for other shapes, half precision, dtypes or devices that differ, a threshold outside
            [0, 1], or a ``max_keep`` that is negative or 2**31 or more.
    """
    return torch.ops.frcnn_ops.nms_padded(boxes, scores, iou_threshold, max_keep)


@torch.library.register_fake("frcnn_ops::nms")
def _(boxes, scores, groups, iou_threshold):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


@torch.library.register_fake("frcnn_ops::nms_padded")
def _(boxes, scores, iou_threshold, max_keep):
    check("max_keep", max_keep)
    segments = boxes.shape[0]
    return (
        boxes.new_empty((segments, max_keep), dtype=torch.int64),
        boxes.new_empty(segments, dtype=torch.int64),
    )
