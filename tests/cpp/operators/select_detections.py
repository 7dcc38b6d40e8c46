"""The box head's outputs to the best detections of each image."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import STDS, Case, boxes, wild_boxes
from emulated import Double, Int, Pointer, doubles, size_of

Bool = ctypes.c_bool


def select_detections_cases(seed: int) -> Iterator[Case]:
    """Few scores that pass, many, ties, none, one class, boxes for all classes, and more than are wanted."""
    rng = np.random.default_rng(seed)
    for images, count, classes, agnostic, most, threshold in [
        (1, 70, 3, False, 10, 0.3), (2, 33, 5, True, 200, 0.05), (3, 1, 1, False, 1, 0.0),
        (1, 130, 2, False, 60, 0.0), (2, 9, 4, False, 5, 1.0), (0, 4, 2, False, 3, 0.1),
        (2, 0, 2, False, 3, 0.1), (1, 5, 0, False, 3, 0.1), (1, 6, 2, True, 0, 0.1),
    ]:  # fmt: skip
        scores = np.round(rng.random((images, count, classes + 1)), 2).astype(np.float32)
        scores[rng.random(scores.shape) < 0.03] = np.nan
        make = wild_boxes if count != 70 else boxes
        deltas = rng.normal(size=(images, count, 4 if agnostic else 4 * classes)).astype(np.float32)
        yield {
            "probabilities": scores, "deltas": deltas,
            "proposals": make(rng, images * count).reshape(images, count, 4),
            "present": rng.random((images, count)) < 0.9,
            "sizes": rng.uniform(60, 100, (images, 2)).astype(np.float32),
            "scales": rng.uniform(0.5, 2, (images, 2)).astype(np.float32), "stds": STDS,
            "score_threshold": threshold, "iou_threshold": 0.4, "max_detections": most,
        }  # fmt: skip


class Selection(ctypes.Structure):
    _fields_ = (
        ("probabilities", Pointer), ("deltas", Pointer), ("proposals", Pointer), ("sizes", Pointer),
        ("scales", Pointer), ("present", Pointer), ("stds", Pointer), ("images", Int),
        ("proposals_per_image", Int), ("classes", Int), ("class_agnostic", Bool),
        ("score_threshold", Double), ("iou_threshold", Double), ("max_detections", Int),
    )  # fmt: skip


def select_detections(
    probabilities, deltas, proposals, present, sizes, scales, stds, score_threshold, iou_threshold,
    max_detections, seed=0,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    images, count, columns = probabilities.shape
    classes, stds = columns - 1, doubles(stds)
    with emulated.device(seed) as d:
        inputs = [d.put(a).address for a in (probabilities, deltas, proposals, sizes, scales, present)]
        selection = Selection(
            *inputs, ctypes.addressof(stds), images, count, classes, deltas.shape[2] != 4 * classes,
            score_threshold, iou_threshold, max_detections,
        )  # fmt: skip
        pointer = ctypes.byref(selection)
        memory = d.empty(size_of(d, "frcnn_cuda_select_detections_workspace", pointer), np.uint8)
        shape = images, max_detections
        results = [
            d.empty((*shape, 4)), d.empty(shape), d.empty(shape, np.int64), d.empty(shape, np.int64),
            d.empty(images, np.int64),
        ]  # fmt: skip
        d.call("frcnn_cuda_select_detections", pointer, memory, *results)
        return tuple(d.get(result) for result in results)
