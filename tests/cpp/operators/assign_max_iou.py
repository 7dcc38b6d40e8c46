"""Boxes to ground truth."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, boxes, wild_boxes
from emulated import Double, Int, Pointer, kind_of


def assign_max_iou_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n, batch, g, regions, shared in [
        (0, 1, 3, 0, True), (5, 2, 0, 0, True), (300, 2, 9, 3, True), (257, 3, 5, 0, False),
        (40, 1, 300, 2, True), (3, 0, 2, 0, True),
    ]:  # fmt: skip
        dtype = np.float64 if rng.random() < 0.3 else np.float32
        # Boxes on a coarse grid, so that IoUs tie.
        grid = np.round(boxes(rng, n * (1 if shared else batch)) / 8) * 8
        grid[::9] = wild_boxes(rng, len(grid[::9]))
        gts = np.round(boxes(rng, batch * g) / 8) * 8
        gts[::5] = wild_boxes(rng, len(gts[::5]))
        ignore = boxes(rng, batch * regions).reshape(batch, regions, 4) if regions else None
        yield {
            "boxes": grid.astype(dtype).reshape((n, 4) if shared else (batch, n, 4)),
            "gts": gts.astype(dtype).reshape(batch, g, 4),
            "gt_counts": np.full(batch, g) if g > 256 else rng.integers(0, g + 1, batch),
            "ignore": None if ignore is None else ignore.astype(dtype),
            "ignore_counts": None if ignore is None else rng.integers(0, regions + 1, batch),
            "pos_iou": 0.5, "neg_iou": float(rng.choice([0.3, 0.5])),
            "min_pos_iou": float(rng.choice([0.0, 0.3])),
            "match_low_quality": bool(rng.integers(4)), "ignore_iof": 0.5,
        }  # fmt: skip


class Assignment(ctypes.Structure):
    _fields_ = (
        ("boxes", Pointer), ("gts", Pointer), ("gt_counts", Pointer), ("ignore", Pointer),
        ("ignore_counts", Pointer), ("batch", Int), ("n", Int), ("g", Int), ("i", Int),
        ("box_batch_stride", Int), ("pos_iou", Double), ("neg_iou", Double), ("min_pos_iou", Double),
        ("ignore_iof", Double), ("match_low_quality", ctypes.c_bool),
    )  # fmt: skip


def assign_max_iou(
    boxes, gts, gt_counts, ignore, ignore_counts, pos_iou, neg_iou, min_pos_iou, match_low_quality,
    ignore_iof, seed=0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    batch, g = gts.shape[:2]
    n = boxes.shape[-2]
    with emulated.device(seed) as d:
        gt_index, max_iou = d.empty((batch, n), np.int64), d.empty((batch, n), boxes.dtype)
        assignment = Assignment(
            *(None if array is None else d.put(array).address
              for array in (boxes, gts, gt_counts, ignore, ignore_counts)),
            batch, n, g, 0 if ignore is None else ignore.shape[1], n * 4 if boxes.ndim == 3 else 0,
            pos_iou, neg_iou, min_pos_iou, ignore_iof, match_low_quality,
        )  # fmt: skip
        d.call(
            "frcnn_cuda_assign_max_iou", kind_of(boxes), ctypes.byref(assignment),
            d.empty((batch, g), boxes.dtype), gt_index, max_iou,
        )  # fmt: skip
        return d.get(gt_index), d.get(max_iou)
