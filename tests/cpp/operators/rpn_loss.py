"""The RPN's losses of sampled anchors, and their gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits, boxes
from emulated import Int, Pointer, doubles


def rpn_loss_cases(seed: int) -> Iterator[Case]:
    """Every type; slots that are unused or no anchor's; anchors of all images and of each; nothing at all."""
    rng = np.random.default_rng(seed)
    for kind, batch, sizes, slots, g, channels_last, shared in [
        ("float32", 2, [(5, 7), (3, 4), (0, 2)], 40, 3, True, True),
        ("half", 1, [(9, 8)], 700, 2, False, False), ("bfloat16", 3, [(2, 2), (1, 1)], 9, 1, True, False),
        ("float64", 2, [(4, 3)], 20, 4, False, True), ("float32", 2, [(2, 3)], 5, 0, True, True),
        ("float32", 1, [(0, 0)], 0, 1, True, True), ("float32", 0, [(2, 2)], 4, 1, True, True),
    ]:  # fmt: skip
        n = sum(2 * h * w for h, w in sizes)
        image_boxes = [boxes(rng, n) for _ in range(1 if shared else batch)]
        anchors = image_boxes[0] if shared else np.stack(image_boxes)
        index = np.stack([rng.permutation(max(n, slots))[:slots] for _ in range(batch)] or [np.zeros(slots)])
        index[index >= n] = -1
        positives = rng.integers(0, slots // 2 + 1, batch)
        counts = np.stack([positives, rng.integers(0, slots - positives + 1)], 1)
        yield {
            "maps": [bits(rng.normal(size=(batch, 10, *size)) * 3, kind) for size in sizes],
            "anchors": anchors, "gts": boxes(rng, batch * g).reshape(batch, g, 4),
            "gt_index": rng.integers(-1, g + 2, (batch, n)), "index": index[:batch].astype(np.int64),
            "counts": counts.astype(np.int64), "stds": (1.0, 1.0, 0.5, 0.5), "kind": kind,
            "channels_last": channels_last,
        }  # fmt: skip


def rpn_loss_backward_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in rpn_loss_cases(seed):
        dtype = np.float64 if case["kind"] == "float64" else np.float32
        grads = {name: np.array(rng.normal(), dtype) for name in ("by_class", "by_box")}
        yield {**grads, **case}


class RPNMap(ctypes.Structure):
    _fields_ = (("values", Pointer), ("height", Int), ("width", Int), ("strides", Int * 4))


class RPNSamples(ctypes.Structure):
    _fields_ = (
        ("maps", Pointer), ("anchors", Pointer), ("gts", Pointer), ("gt_index", Pointer), ("index", Pointer),
        ("counts", Pointer), ("stds", Pointer), ("levels", Int), ("per_cell", Int), ("batch", Int),
        ("n", Int), ("g", Int), ("slots", Int), ("anchor_stride", Int),
    )  # fmt: skip


def put(d, maps, anchors, gts, gt_index, index, counts, stds, channels_last) -> tuple[RPNSamples, list]:
    """The kernel's argument, and what has to be kept as long as it."""
    levels = (RPNMap * len(maps))()
    for level, values in zip(levels, maps, strict=True):
        _, c, h, w = values.shape
        own = values.transpose(0, 2, 3, 1) if channels_last else values
        strides = (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
        level.__init__(d.put(own).address, h, w, (Int * 4)(*strides))
    unit = doubles(stds)
    addresses = [d.put(a).address for a in (anchors, gts, gt_index, index, counts)]
    n = anchors.shape[-2]
    samples = RPNSamples(
        ctypes.addressof(levels), *addresses, ctypes.addressof(unit), len(maps), maps[0].shape[1] // 5,
        len(gts), n, gts.shape[1], index.shape[1], n * 4 if anchors.ndim == 3 else 0,
    )  # fmt: skip
    return samples, [levels, unit]


def wide(kind: str) -> type:
    return np.float64 if kind == "float64" else np.float32


def rpn_loss(
    maps, anchors, gts, gt_index, index, counts, stds, kind, channels_last, seed=0
) -> tuple[np.ndarray, np.ndarray]:
    with emulated.device(seed) as d:
        samples, _kept = put(d, maps, anchors, gts, gt_index, index, counts, stds, channels_last)
        of_class, of_box = d.empty((), wide(kind)), d.empty((), wide(kind))
        d.call("frcnn_cuda_rpn_loss", emulated.KINDS[kind], ctypes.byref(samples), of_class, of_box)
        return d.get(of_class), d.get(of_box)


def rpn_loss_backward(
    by_class, by_box, maps, anchors, gts, gt_index, index, counts, stds, kind, channels_last, seed=0
) -> list[np.ndarray]:
    with emulated.device(seed) as d:
        samples, _kept = put(d, maps, anchors, gts, gt_index, index, counts, stds, channels_last)
        grads = [d.put(np.zeros(np.moveaxis(m, 1, 3).shape, m.dtype)) for m in maps]
        places = (Pointer * len(grads))(*(g.address for g in grads))
        given = emulated.KINDS[kind], ctypes.byref(samples), d.put(by_class), d.put(by_box)
        d.call("frcnn_cuda_rpn_loss_backward", *given, places)
        return [np.ascontiguousarray(np.moveaxis(d.get(g), 3, 1)) for g in grads]
