"""NMS in its forms: small segments in one block, with groups, and of any size."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, boxes, scores, wild_boxes
from emulated import Buffer, Device, Double, Int, Pointer, kind_of, size_of


def nms_padded_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for segments, n, keep in [(0, 5, 3), (2, 0, 3), (3, 1, 1), (4, 64, 0), (2, 65, 40), (2, 300, 1000)]:
        yield {
            "boxes": wild_boxes(rng, segments * n).reshape(segments, n, 4),
            "scores": scores(rng, segments, n), "iou_threshold": float(rng.choice([0.0, 0.3, 0.5, 1.0])),
            "max_keep": keep,
        }  # fmt: skip


def nms_grouped_cases(seed: int) -> Iterator[Case]:
    """One segment with groups; every score counts, -inf too."""
    rng = np.random.default_rng(seed)
    for n in (1, 70, 700):
        groups = rng.choice([-5, 0, 2**40, 2**40 + 1], n)
        yield {"boxes": wild_boxes(rng, n), "scores": scores(rng, n), "groups": groups, "iou_threshold": 0.4}


def nms_large_cases(seed: int) -> Iterator[Case]:
    """Groups of many sizes, some of several chunks."""
    rng = np.random.default_rng(seed)
    for n, dtype, sizes in [(60, np.float32, 7), (2600, np.float64, 3), (4500, np.float32, 1)]:
        groups = np.where(rng.random(n) < 0.9, 7, rng.integers(0, sizes, n))
        b = boxes(rng, n, 1000.0, dtype)
        b[: n // 10] = wild_boxes(rng, n // 10, dtype)
        yield {"boxes": b, "scores": scores(rng, n, dtype=dtype), "groups": groups, "iou_threshold": 0.3}


def nms_padded_large_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for segments, n, keep, dtype in [(3, 100, 60, np.float32), (2, 2500, 900, np.float64)]:
        b = np.stack([boxes(rng, n, 400.0, dtype) for _ in range(segments)])
        s = scores(rng, segments, n, dtype=dtype)
        yield {"boxes": b, "scores": s, "iou_threshold": 0.2, "max_keep": keep}


class LargeNms(ctypes.Structure):
    _fields_ = (
        ("boxes", Pointer), ("scores", Pointer), ("order", Pointer), ("starts", Pointer),
        ("segment_count", Pointer), ("total", Int), ("segments", Int), ("n", Int), ("iou_threshold", Double),
        ("max_keep", Int), ("keep", Pointer), ("indices", Pointer), ("counts", Pointer),
    )  # fmt: skip


def _keys(d: Device, scores: np.ndarray) -> np.ndarray:
    keys = d.empty(scores.shape, np.int64 if scores.dtype == np.float64 else np.int32)
    d.call("frcnn_cuda_nms_keys", kind_of(scores), d.put(scores), scores.size, keys)
    return d.get(keys)


def _suppress_large(d: Device, kind: int, **fields: object) -> None:
    addresses = {name: v.address if isinstance(v, Buffer) else v for name, v in fields.items()}
    problem = LargeNms(**addresses)
    size = size_of(d, "frcnn_cuda_nms_large_workspace", Int(kind), Int(problem.total))
    d.call("frcnn_cuda_nms_large", kind, ctypes.byref(problem), d.empty(size, np.uint8))


def nms_padded(
    boxes, scores, iou_threshold, max_keep, groups=None, drop_absent=True, seed=0
) -> tuple[np.ndarray, np.ndarray]:
    """Small segments: boxes [S, N, 4] float32 with N up to kFrcnnNmsBlock."""
    segments, n = scores.shape
    with emulated.device(seed) as d:
        indices, counts = d.empty((segments, max_keep), np.int64), d.empty(segments, np.int64)
        inputs = d.put(boxes), d.put(scores), None if groups is None else d.put(groups), segments, n
        memory = d.empty(size_of(d, "frcnn_cuda_nms_workspace", Int(segments), Int(n)), np.uint8)
        d.call(
            "frcnn_cuda_nms",
            kind_of(boxes),
            *inputs,
            Double(iou_threshold),
            max_keep,
            ctypes.c_bool(drop_absent),
            memory,
            indices,
            counts,
        )
        return d.get(indices), d.get(counts)


def nms_grouped(boxes, scores, groups, iou_threshold, seed=0) -> np.ndarray:
    """The list form for up to kFrcnnNmsBlock boxes [N, 4] float32: kept indices, best first."""
    n = len(boxes)
    one = boxes[None], scores[None], iou_threshold, n, groups[None]
    indices, counts = nms_padded(*one, drop_absent=False, seed=seed)
    assert np.all(indices[0, counts[0] :] == -1)
    return indices[0, : counts[0]]


def nms_large(boxes, scores, groups, iou_threshold, seed=0) -> np.ndarray:
    """The list form for any number of boxes [N, 4]: kept indices, best first."""
    n = len(boxes)
    with emulated.device(seed) as d:
        by_score = np.argsort(_keys(d, scores), kind="stable")
        by_group = np.argsort(groups[by_score], kind="stable")
        order = by_score[by_group]
        changed = np.diff(groups[order], prepend=groups[order][:1] - 1) != 0
        ids = d.put(np.cumsum(changed).astype(np.int64))
        starts, count = d.empty(n + 1, np.int64), d.empty(1, np.int64)
        d.call("frcnn_cuda_nms_segments", ids, n, starts, count)
        keep = d.empty(n, np.uint8)
        _suppress_large(
            d, kind_of(boxes), boxes=d.put(boxes), order=d.put(order), starts=starts, segment_count=count,
            total=n, iou_threshold=iou_threshold, max_keep=n, keep=keep,
        )  # fmt: skip
        kept_by_score = np.zeros(n, bool)
        kept_by_score[by_group] = d.get(keep) != 0
        return by_score[kept_by_score]


def nms_padded_large(boxes, scores, iou_threshold, max_keep, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """The padded form for any number of boxes [S, N, 4]."""
    segments, n = scores.shape
    with emulated.device(seed) as d:
        order = np.argsort(_keys(d, scores), axis=1, kind="stable")
        indices, counts = d.empty((segments, max_keep), np.int64), d.empty(segments, np.int64)
        _suppress_large(
            d, kind_of(boxes), boxes=d.put(boxes), scores=d.put(scores), order=d.put(order),
            total=segments * n, segments=segments, n=n, iou_threshold=iou_threshold, max_keep=max_keep,
            indices=indices, counts=counts,
        )  # fmt: skip
        return d.get(indices), d.get(counts)
