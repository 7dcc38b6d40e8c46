"""Pixels to the network's input."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case
from emulated import doubles, kind_of

KINDS = ("float32", "half", "bfloat16")


def normalize_images_cases(seed: int) -> Iterator[Case]:
    """Both orders of channels, images as large as their batch, smaller or empty, and wild sizes."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        for batch, height, width, rgb in [
            (1, 9, 30, True),
            (2, 17, 16, False),
            (0, 3, 3, True),
            (2, 0, 4, True),
        ]:
            sizes = rng.integers(0, 20, (batch, 2)).astype(np.float32)
            if batch == 2:
                sizes[1] = [np.nan, np.inf] if seed % 2 else [16.5, 1e30]
            yield {
                "images": rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8), "sizes": sizes,
                "mean": [123.675, 116.28, 0.0], "std": [58.395, 1.0, 1e-3], "rgb": rgb, "kind": kind,
            }  # fmt: skip
        for channels in (1, 4, 7):
            yield {
                "images": rng.integers(0, 256, (2, 5, 9, channels), dtype=np.uint8),
                "sizes": np.array([[5, 9], [3, 4]], np.float32), "mean": [float(c) for c in range(channels)],
                "std": [c + 0.5 for c in range(channels)], "rgb": False, "kind": kind,
            }  # fmt: skip


def normalize_images(images, sizes, mean, std, rgb, kind, seed=0) -> np.ndarray:
    dtype = np.float32 if kind == "float32" else np.uint16
    batch, height, width, channels = images.shape
    with emulated.device(seed) as d:
        out = d.empty(images.shape, dtype)
        d.call(
            "frcnn_cuda_normalize_images", kind_of(images, kind), d.put(images), d.put(sizes), doubles(mean),
            doubles(std), rgb, batch, height, width, channels, out,
        )  # fmt: skip
        return d.get(out).transpose(0, 3, 1, 2)
