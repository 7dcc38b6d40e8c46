"""Deltas of chosen anchors to proposals."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits
from emulated import Double, Int, Pointer, doubles, kind_of
from operators.grid_anchors import Anchors


def decode_proposals_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    settings = {
        "strides": [4.0, 8.0, 16.0], "scales": [8.0], "ratios": [0.5, 1.0, 2.0], "center_offset": 0.0,
        "stds": (1.0, 1.0, 1.0, 1.0),
    }  # fmt: skip
    for kind in ("float32", "half", "bfloat16"):
        for batch, channels_last in [(1, False), (3, True), (0, False)]:
            sizes = [(13, 17), (7, 9), (0, 4)]
            anchors = [3 * h * w for h, w in sizes]
            yield {
                "deltas": [bits(rng.normal(size=(batch, 12, *s)), kind) for s in sizes],
                "indices": [rng.integers(0, max(n, 1), (batch, 100 if n else 0)) for n in anchors],
                "image_sizes": rng.uniform(30, 60, (batch, 2)).astype(np.float32), **settings,
                "min_size": 3.0, "kind": kind, "channels_last": channels_last,
            }  # fmt: skip


class ProposalLevel(ctypes.Structure):
    _fields_ = (
        ("deltas", Pointer), ("indices", Pointer), ("height", Int), ("width", Int), ("count", Int),
        ("batch_stride", Int), ("channel_stride", Int), ("row_stride", Int), ("column_stride", Int),
    )  # fmt: skip


def decode_proposals(
    deltas, indices, image_sizes, strides, scales, ratios, center_offset, stds, min_size,
    kind=None, channels_last=False, seed=0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    batch, rows = len(image_sizes), sum(i.shape[1] for i in indices)
    with emulated.device(seed) as d:
        levels = (ProposalLevel * len(deltas))()
        for level, delta, index in zip(levels, deltas, indices, strict=True):
            _, c, h, w = delta.shape
            if channels_last:
                data, own = delta.transpose(0, 2, 3, 1), (h * w * c, 1, w * c, c)
            else:
                data, own = delta, (c * h * w, h * w, w, 1)
            pointers = d.put(data).address, d.put(index).address
            level.__init__(*pointers, h, w, index.shape[1], *own)
        boxes, valid = d.empty((batch, rows, 4)), d.empty((batch, rows), np.bool_)
        grid = Anchors(strides, scales, ratios, center_offset)
        kind = kind_of(deltas[0], kind)
        args = ctypes.byref(grid), levels, d.put(image_sizes), batch, doubles(stds), Double(min_size)
        d.call("frcnn_cuda_decode_proposals", kind, *args, boxes, valid)
        return d.get(boxes), d.get(valid)
