"""What follows a convolution."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits
from emulated import Int, Pointer, kind_of

KINDS = ("float32", "half", "bfloat16")


def conv_epilogue_cases(seed: int) -> Iterator[Case]:
    """Channels that fill 16 bytes and that do not; no other map, one of this size, of half, and of others."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        for batch, channels, height, width, other, relu in [
            (1, 16, 5, 7, None, True), (2, 8, 4, 6, (4, 6), True), (2, 24, 6, 10, (3, 5), False),
            (1, 3, 7, 5, (4, 3), True), (1, 1, 9, 9, (2, 20), False), (0, 8, 2, 2, None, True),
            (1, 0, 2, 2, (1, 1), True), (1, 8, 0, 3, (1, 1), False),
        ]:  # fmt: skip

            def made(*shape, kind=kind):
                values = rng.normal(size=shape).astype(np.float32)
                values[rng.random(shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf, 65504.0, -0.0])
                return bits(values, kind)

            yield {
                "x": made(batch, channels, height, width), "bias": made(channels),
                "add": None if other is None else made(batch, channels, *other), "relu": relu, "kind": kind,
            }  # fmt: skip


class Epilogue(ctypes.Structure):
    _fields_ = (
        ("x", Pointer), ("bias", Pointer), ("add", Pointer), ("relu", ctypes.c_bool), ("batch", Int),
        ("height", Int), ("width", Int), ("channels", Int), ("add_height", Int), ("add_width", Int),
    )  # fmt: skip


def conv_epilogue(x, bias, add, relu, kind, seed=0) -> np.ndarray:
    batch, channels, height, width = x.shape
    with emulated.device(seed) as d:
        maps = [None if a is None else d.put(np.ascontiguousarray(a.transpose(0, 2, 3, 1))) for a in (x, add)]
        own, other = (None if a is None else a.address for a in maps)
        epilogue = Epilogue(
            own, d.put(bias).address, other, relu, batch, height, width, channels,
            *((0, 0) if add is None else add.shape[2:]),
        )  # fmt: skip
        out = d.empty((batch, height, width, channels), x.dtype)
        d.call("frcnn_cuda_conv_epilogue", kind_of(x, kind), ctypes.byref(epilogue), out)
        return d.get(out).transpose(0, 3, 1, 2)
