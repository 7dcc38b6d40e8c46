"""Norms folded into convolutions, and the gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits
from emulated import Double, Int, Pointer, kind_of

ROWS = ((3, 5), (64, 300), (1, 1), (2, 256), (0, 4), (5, 0))


def layers(seed: int, count: int, dtype=np.float32) -> Case:
    rng = np.random.default_rng(seed)
    shapes = [ROWS[i % len(ROWS)] for i in range(count)]
    vectors = {
        name: [rng.normal(size=k).astype(dtype) for k, _ in shapes] for name in ("gains", "shifts", "means")
    }
    variances = [rng.uniform(0, 2, k).astype(dtype) for k, _ in shapes]
    weights = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    if seed == 1 and count > 1:
        weights[0][1, 2], variances[1][3] = np.inf, np.nan
    return {"weights": weights, **vectors, "variances": variances, "eps": 1e-5}


def fold_norms_cases(seed: int) -> Iterator[Case]:
    """More layers than a launch takes, empty ones, numbers that are not finite."""
    for count, kind in ((6, "float32"), (6, "half"), (35, "bfloat16"), (1, "float32")):
        yield {**layers(seed, count), "kind": kind}
    yield {**layers(0, 6, np.float64), "kind": "float64"}


def fold_norms_backward_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in fold_norms_cases(seed):
        kind = case["kind"]
        shapes = [w.shape for w in case["weights"]] + [w.shape[:1] for w in case["weights"]]
        grads = [bits(rng.normal(size=shape), kind) for shape in shapes]
        yield {"grads": grads, **case}


class Norm(ctypes.Structure):
    _fields_ = (
        ("weight", Pointer), ("gain", Pointer), ("shift", Pointer), ("mean", Pointer), ("variance", Pointer),
        ("filters", Int), ("row", Int),
    )  # fmt: skip


def put(d: emulated.Device, *lists: list[np.ndarray]) -> ctypes.Array:
    norms = (Norm * len(lists[0]))()
    for norm, *arrays in zip(norms, *lists, strict=True):
        weight = arrays[0]
        norm.__init__(
            *(d.put(a).address for a in arrays), len(weight), weight.size // len(weight) if len(weight) else 0
        )
    return norms


def addresses(buffers: list) -> ctypes.Array:
    return (Pointer * len(buffers))(*(b.address for b in buffers))


def fold_norms(weights, gains, shifts, means, variances, eps, kind, seed=0) -> list[np.ndarray]:
    with emulated.device(seed) as d:
        norms = put(d, weights, gains, shifts, means, variances)
        out = np.uint16 if kind in ("half", "bfloat16") else np.dtype(kind)
        folded = [d.empty(w.shape, out) for w in weights]
        biases = [d.empty(len(w), out) for w in weights]
        types = kind_of(weights[0]), emulated.KINDS[kind]
        d.call(
            "frcnn_cuda_fold_norms", *types, norms, len(weights), Double(eps), addresses(folded),
            addresses(biases),
        )  # fmt: skip
        return [d.get(b) for b in folded + biases]


def fold_norms_backward(
    grads, weights, gains, shifts, means, variances, eps, kind, seed=0
) -> list[np.ndarray]:
    count = len(weights)
    with emulated.device(seed) as d:
        norms, given = put(d, weights, gains, shifts, means, variances), [d.put(g) for g in grads]
        of_weights = [d.empty(w.shape, w.dtype) for w in weights]
        vectors = [d.empty(len(w), w.dtype) for w in weights + weights]
        types = kind_of(weights[0]), emulated.KINDS[kind]
        d.call(
            "frcnn_cuda_fold_norms_backward", *types, norms, count, Double(eps), addresses(given[:count]),
            addresses(given[count:]), addresses(of_weights), addresses(vectors[:count]),
            addresses(vectors[count:]),
        )  # fmt: skip
        return [d.get(b) for b in of_weights + vectors]
