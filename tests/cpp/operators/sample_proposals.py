"""A random subset of each image's gts and proposals."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, boxes
from emulated import Int, Pointer, size_of


def sample_proposals_cases(seed: int) -> Iterator[Case]:
    """Absent proposals, gts without an area, indices beyond the gts, fewer candidates than slots."""
    rng = np.random.default_rng(seed)
    for batch, p, g, samples, most_positive in [
        (2, 300, 5, 64, 16), (1, 20, 3, 512, 128), (3, 513, 1, 100, 100), (2, 0, 4, 6, 3), (2, 9, 0, 6, 3),
        (0, 3, 2, 4, 1), (1, 0, 0, 4, 1), (1, 5, 5, 0, 0),
    ]:  # fmt: skip
        gts = np.stack([boxes(rng, g) for _ in range(batch)]) if batch else np.zeros((0, g, 4), np.float32)
        if g > 2 and batch:
            gts[0, 1, 2:] = gts[0, 1, :2]
            gts[0, 2, 3] = np.nan
        scores = rng.normal(size=(batch, p)).astype(np.float32)
        scores[rng.random((batch, p)) < 0.2] = -np.inf
        yield {
            "proposals": rng.uniform(0, 99, (batch, p, 4)).astype(np.float32), "scores": scores,
            "gt_index": rng.integers(-1, g + 2, (batch, p)), "gts": gts,
            "gt_labels": rng.integers(0, 9, (batch, g)), "gt_counts": rng.integers(0, g + 1, batch),
            "seed": np.array(rng.integers(-(2**63), 2**63 - 1)), "samples": samples,
            "most_positive": most_positive, "background": 9,
        }  # fmt: skip


class Candidates(ctypes.Structure):
    _fields_ = (
        ("proposals", Pointer), ("scores", Pointer), ("gt_index", Pointer), ("gts", Pointer),
        ("labels", Pointer), ("counts", Pointer), ("batch", Int), ("p", Int), ("g", Int), ("background", Int),
    )  # fmt: skip


def sample_proposals(
    proposals, scores, gt_index, gts, gt_labels, gt_counts, seed, samples, most_positive, background, order=0
) -> tuple[np.ndarray, ...]:
    """`seed` is the operator's own; `order` that of the threads."""
    (batch, p), g = scores.shape, gts.shape[1]
    slots = min(samples, g + p)
    with emulated.device(order) as d:
        arrays = proposals, scores, gt_index, gts, gt_labels, gt_counts
        candidates = Candidates(*(d.put(a).address for a in arrays), batch, p, g, background)
        pointer = ctypes.byref(candidates)
        memory = d.empty(size_of(d, "frcnn_cuda_sample_proposals_workspace", pointer), np.uint8)
        results = [
            d.empty((batch, slots, 5)), d.empty((batch, slots), np.int64), d.empty((batch, slots, 4)),
            d.empty((batch, 2), np.int64),
        ]  # fmt: skip
        given = pointer, d.put(seed), slots, most_positive, memory
        d.call("frcnn_cuda_sample_proposals", *given, *results)
        return tuple(d.get(r) for r in results)
