"""Boxes to deltas, deltas to boxes, and the gradient of the latter."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import STDS, Case, wild_boxes
from emulated import doubles, ints, kind_of


def encode_boxes_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n in (0, 1, 255, 300):
        for dtype in (np.float32, np.float64):
            yield {"boxes": wild_boxes(rng, n, dtype), "targets": wild_boxes(rng, n, dtype), "stds": STDS}


def decode_boxes_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n, classes, shape in [(0, 1, None), (3, 0, None), (100, 3, (60, 80)), (257, 1, None)]:
        for dtype in (np.float32, np.float64):
            deltas = (rng.normal(size=(n, 4 * classes)) * 6).astype(dtype)
            yield {"boxes": wild_boxes(rng, n, dtype), "deltas": deltas, "stds": STDS, "max_shape": shape}


def decode_boxes_backward_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in decode_boxes_cases(seed):
        deltas = case["deltas"]
        yield {"grad": rng.normal(size=deltas.shape).astype(deltas.dtype), **case}


def encode_boxes(boxes, targets, stds, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(boxes.shape, boxes.dtype)
        args = d.put(boxes), d.put(targets), doubles(stds), len(boxes), out
        d.call("frcnn_cuda_encode_boxes", kind_of(boxes), *args)
        return d.get(out)


def decode_boxes(boxes, deltas, stds, max_shape, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(deltas.shape, boxes.dtype)
        shape = None if max_shape is None else ints(max_shape)
        args = d.put(boxes), d.put(deltas), doubles(stds), shape, len(boxes), deltas.shape[1] // 4, out
        d.call("frcnn_cuda_decode_boxes", kind_of(boxes), *args)
        return d.get(out)


def decode_boxes_backward(grad, boxes, deltas, stds, max_shape, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(deltas.shape, boxes.dtype)
        shape = None if max_shape is None else ints(max_shape)
        arrays = d.put(grad), d.put(boxes), d.put(deltas)
        args = *arrays, doubles(stds), shape, len(boxes), deltas.shape[1] // 4, out
        d.call("frcnn_cuda_decode_boxes_backward", kind_of(boxes), *args)
        return d.get(out)
