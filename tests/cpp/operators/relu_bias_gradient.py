"""The gradient of a ReLU and of the bias before it."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits
from emulated import Int, kind_of, size_of

KINDS = ("float32", "float64", "half", "bfloat16")


def relu_bias_gradient_cases(seed: int) -> Iterator[Case]:
    """Channels that fill 16 bytes, a block, and that do not; one part of the cells and several; none."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        for batch, channels, height, width in [
            (1, 16, 5, 7), (2, 72, 12, 23), (2, 5, 9, 13), (1, 1, 17, 40), (1, 264, 2, 3), (0, 8, 2, 2),
            (1, 0, 2, 2), (1, 8, 0, 3),
        ]:  # fmt: skip
            out = np.maximum(rng.normal(size=(batch, channels, height, width)), 0).astype(np.float32)
            out[rng.random(out.shape) < 0.02] = np.nan
            out[rng.random(out.shape) < 0.02] = -0.0
            yield {"grad": bits(rng.normal(size=out.shape), kind), "out": bits(out, kind), "kind": kind}


def relu_bias_gradient(grad, out, kind, seed=0) -> tuple[np.ndarray, np.ndarray]:
    batch, channels, height, width = grad.shape
    cells = batch * height * width
    with emulated.device(seed) as d:
        maps = [d.put(np.ascontiguousarray(a.transpose(0, 2, 3, 1))) for a in (grad, out)]
        number = kind_of(grad, kind)
        size = size_of(d, "frcnn_cuda_relu_bias_gradient_workspace", Int(number), Int(cells), Int(channels))
        masked = d.empty((batch, height, width, channels), grad.dtype)
        by_bias = d.empty(channels, grad.dtype)
        d.call(
            "frcnn_cuda_relu_bias_gradient", number, *maps, Int(cells), Int(channels),
            d.empty(size, np.uint8), masked, by_bias,
        )  # fmt: skip
        return d.get(masked).transpose(0, 3, 1, 2), d.get(by_bias)
