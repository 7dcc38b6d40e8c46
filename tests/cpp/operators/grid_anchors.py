"""Anchors of a feature pyramid."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case
from emulated import Int, Pointer, floats, ints


def grid_anchors_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield {
        "sizes": [int(n) for n in rng.integers(0, 12, 2 * 3)], "strides": [4.0, 8.0, 16.0],
        "scales": [8.0, 11.3], "ratios": [0.5, 1.0, 2.0], "center_offset": 0.5,
        "image_sizes": None,
    }  # fmt: skip
    yield {
        "sizes": [9, 7, 5, 4], "strides": [8.0, 16.0], "scales": [8.0], "ratios": [0.5, 2.0],
        "center_offset": 0.0, "image_sizes": np.array([[30, 50], [72, 16.5], [0, 9]], np.float32),
    }  # fmt: skip
    one = {"center_offset": 0.0, "image_sizes": None}
    yield {"sizes": [25, 7], "strides": [13.0], "scales": [3.0], "ratios": [0.37], **one}
    yield {"sizes": [0, 5], "strides": [4.0], "scales": [8.0], "ratios": [1.0], **one}


class Anchors(ctypes.Structure):
    _fields_ = (
        ("strides", Pointer), ("scales", Pointer), ("ratios", Pointer),
        ("levels", Int), ("num_scales", Int), ("num_ratios", Int), ("center_offset", ctypes.c_float),
    )  # fmt: skip

    def __init__(self, strides, scales, ratios, center_offset):
        self.arrays = [floats(strides), floats(scales), floats(ratios)]
        addresses = [ctypes.addressof(a) for a in self.arrays]
        super().__init__(*addresses, len(strides), len(scales), len(ratios), center_offset)


def grid_anchors(sizes, strides, scales, ratios, center_offset, image_sizes=None, seed=0) -> np.ndarray:
    """sizes: H0, W0, H1, W1, ..."""
    cells = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    with emulated.device(seed) as d:
        images = () if image_sizes is None else (len(image_sizes),)
        out = d.empty((*images, cells * len(scales) * len(ratios), 4))
        own = None if image_sizes is None else d.put(image_sizes)
        grid = Anchors(strides, scales, ratios, center_offset)
        d.call("frcnn_cuda_grid_anchors", ctypes.byref(grid), ints(sizes), own, *(images or (1,)), out)
        return d.get(out)
