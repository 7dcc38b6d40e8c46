"""The box head's losses of sampled boxes, and their gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import STDS, Case, bits, boxes
from emulated import Double, Int, Pointer, doubles, size_of

MODES = {"iou": 0, "giou": 3, "diou": 4, "ciou": 5, "bounded_iou": 6, "l1": 7}
"""As frcnn::IouLoss counts them."""


def box_head_loss_cases(seed: int) -> Iterator[Case]:
    """Every mode and type; labels that are no class; unused rows, and none; ties between classes."""
    rng = np.random.default_rng(seed)
    for mode, kind, batch, slots, classes, agnostic in [
        ("l1", "float32", 2, 70, 80, False), ("iou", "float32", 1, 9, 3, True),
        ("giou", "half", 2, 33, 31, False), ("diou", "bfloat16", 1, 8, 32, False),
        ("ciou", "float64", 3, 5, 2, True), ("bounded_iou", "float32", 2, 20, 5, False),
        ("l1", "float64", 1, 12, 1, False), ("l1", "float32", 0, 4, 3, False),
        ("giou", "float32", 2, 0, 3, True),
    ]:  # fmt: skip
        rows, length = batch * slots, classes + 1 + (4 if agnostic else 4 * classes)
        outputs = rng.normal(size=(rows, length))
        outputs[::3] = np.round(outputs[::3])
        labels = rng.integers(0, classes + 1, (batch, slots))
        labels[rng.random((batch, slots)) < 0.05] = -7
        positives = rng.integers(0, slots + 1, batch)
        rois = np.concatenate([np.zeros((rows, 1), np.float32), boxes(rng, rows)], 1)
        yield {
            "outputs": bits(outputs, kind), "labels": labels, "rois": rois.reshape(batch, slots, 5),
            "targets": boxes(rng, rows).reshape(batch, slots, 4),
            "counts": np.stack([positives, rng.integers(0, slots - positives + 1)], 1).astype(np.int64),
            "stds": STDS, "classes": classes, "mode": mode, "weight": 2.5, "kind": kind,
        }  # fmt: skip


def box_head_loss_backward_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in box_head_loss_cases(seed):
        dtype = np.float64 if case["kind"] == "float64" else np.float32
        grads = {name: np.array(rng.normal(), dtype) for name in ("by_class", "by_box")}
        yield {**grads, **case}


class BoxSamples(ctypes.Structure):
    _fields_ = (
        ("outputs", Pointer), ("labels", Pointer), ("counts", Pointer), ("boxes", Pointer),
        ("targets", Pointer), ("stds", Pointer), ("rows", Int), ("slots", Int), ("classes", Int),
        ("box_stride", Int), ("mode", Int), ("class_agnostic", ctypes.c_bool), ("eps", Double),
        ("beta", Double), ("weight", Double),
    )  # fmt: skip


def put(d, outputs, labels, rois, targets, counts, stds, classes, mode, weight) -> tuple[BoxSamples, object]:
    """The kernel's argument, and what has to be kept as long as it."""
    unit = doubles(stds)
    arrays = outputs, labels, counts, rois[..., 1:], targets
    samples = BoxSamples(
        *(d.put(a).address for a in arrays), ctypes.addressof(unit), labels.size, labels.shape[1], classes,
        4, MODES[mode], outputs.shape[1] != 5 * classes + 1, 1e-3 if mode == "bounded_iou" else 1e-6, 0.2,
        weight,
    )  # fmt: skip
    return samples, unit


def box_head_loss(
    outputs, labels, rois, targets, counts, stds, classes, mode, weight, kind, seed=0
) -> tuple[np.ndarray, ...]:
    with emulated.device(seed) as d:
        given = outputs, labels, rois, targets, counts, stds, classes, mode, weight
        samples, _kept = put(d, *given)
        pointer = ctypes.byref(samples)
        memory = d.empty(size_of(d, "frcnn_cuda_box_head_loss_workspace", pointer), np.uint8)
        results = [d.empty((), np.float64 if kind == "float64" else np.float32) for _ in range(3)]
        d.call("frcnn_cuda_box_head_loss", emulated.KINDS[kind], pointer, memory, *results)
        return tuple(d.get(r) for r in results)


def box_head_loss_backward(
    by_class, by_box, outputs, labels, rois, targets, counts, stds, classes, mode, weight, kind, seed=0
) -> np.ndarray:
    with emulated.device(seed) as d:
        given = outputs, labels, rois, targets, counts, stds, classes, mode, weight
        samples, _kept = put(d, *given)
        grad = d.empty(outputs.shape, outputs.dtype)
        pointers = ctypes.byref(samples), d.put(by_class), d.put(by_box), grad
        d.call("frcnn_cuda_box_head_loss_backward", emulated.KINDS[kind], *pointers)
        return d.get(grad)
