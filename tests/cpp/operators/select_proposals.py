"""The region proposal network's outputs to the proposals of each image."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, scores
from emulated import Double, Int, Pointer, doubles, size_of
from operators.grid_anchors import Anchors


def select_proposals_cases(seed: int) -> Iterator[Case]:
    """Levels of several sizes and of none, equal logits, fewer anchors than wanted and many more."""
    rng = np.random.default_rng(seed)
    for batch, sizes, pre_nms, count, channels_last, min_size in [
        (1, [(13, 17), (7, 9), (0, 4)], 100, 60, False, 3.0), (2, [(5, 6), (1, 1)], 1000, 300, True, 0.0),
        (3, [(4, 4)], 7, 3, False, 0.0), (1, [(30, 31)], 65, 65, True, 0.0), (0, [(3, 4)], 9, 9, False, 0.0),
        (1, [(0, 0)], 9, 9, False, 0.0), (1, [(3, 3)], 0, 5, False, 0.0), (1, [(3, 3)], 5, 0, False, 0.0),
    ]:  # fmt: skip
        logits = [scores(rng, batch, 3, *size) for size in sizes]
        if count == 65:
            logits = [np.zeros_like(level) for level in logits]  # all in one bin
        deltas = [(rng.normal(size=(batch, 12, *size)) * 0.7).astype(np.float32) for size in sizes]
        if count == 300:
            deltas[0][0, 5, 2] = np.nan
        yield {
            "logits": logits, "deltas": deltas,
            "image_sizes": rng.uniform(30, 60, (batch, 2)).astype(np.float32),
            "strides": [4.0, 8.0, 16.0][: len(sizes)], "scales": [8.0], "ratios": [0.5, 1.0, 2.0],
            "center_offset": 0.0, "stds": (1.0, 1.0, 1.0, 1.0), "min_size": min_size,
            "iou_threshold": 0.7, "pre_nms": pre_nms, "count": count, "channels_last": channels_last,
        }  # fmt: skip


class RPNLevel(ctypes.Structure):
    _fields_ = (
        ("logits", Pointer), ("deltas", Pointer), ("height", Int), ("width", Int),
        ("logit_strides", Int * 4), ("delta_strides", Int * 4),
    )  # fmt: skip


class Proposals(ctypes.Structure):
    _fields_ = (
        ("grid", Pointer), ("levels", Pointer), ("image_sizes", Pointer), ("stds", Pointer), ("batch", Int),
        ("min_size", Double), ("iou_threshold", Double), ("pre_nms", Int), ("count", Int),
    )  # fmt: skip


def select_proposals(
    logits, deltas, image_sizes, strides, scales, ratios, center_offset, stds, min_size, iou_threshold,
    pre_nms, count, channels_last=False, seed=0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    batch = len(image_sizes)
    with emulated.device(seed) as d:

        def put(maps: np.ndarray) -> tuple[int, ctypes.Array]:
            _, c, h, w = maps.shape
            if channels_last:
                return d.put(maps.transpose(0, 2, 3, 1)).address, (Int * 4)(h * w * c, 1, w * c, c)
            return d.put(maps).address, (Int * 4)(c * h * w, h * w, w, 1)

        levels = (RPNLevel * len(logits))()
        for level, logit, delta in zip(levels, logits, deltas, strict=True):
            (first, own), (second, other) = put(logit), put(delta)
            level.__init__(first, second, *logit.shape[2:], own, other)
        grid, unit = Anchors(strides, scales, ratios, center_offset), doubles(stds)
        proposals = Proposals(
            ctypes.addressof(grid), ctypes.addressof(levels), d.put(image_sizes).address,
            ctypes.addressof(unit), batch, min_size, iou_threshold, pre_nms, count,
        )  # fmt: skip
        pointer = ctypes.byref(proposals)
        memory = d.empty(size_of(d, "frcnn_cuda_select_proposals_workspace", pointer), np.uint8)
        boxes, best = d.empty((batch, count, 4)), d.empty((batch, count))
        d.call("frcnn_cuda_select_proposals", pointer, memory, boxes, best)
        return d.get(boxes), d.get(best)
