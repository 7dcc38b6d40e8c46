"""Images of any sizes as one batch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case
from emulated import Int, Pointer


def resize_images_cases(seed: int) -> Iterator[Case]:
    """Larger, smaller, halved, as they are, to one pixel, to and of nothing, more than a launch takes."""
    rng = np.random.default_rng(seed)
    shapes = [
        ((7, 9), (15, 20)), ((40, 31), (13, 20)), ((20, 26), (10, 13)), ((11, 12), (11, 12)),
        ((9, 9), (1, 1)), ((1, 1), (15, 20)), ((1, 30), (2, 15)), ((5, 6), (0, 3)), ((0, 4), (7, 0)),
    ]  # fmt: skip
    shapes += [tuple(map(tuple, rng.integers(1, 21, (2, 2)).tolist())) for _ in range(3)]
    many = [((3, 4), (4, 3))] * 33
    for listed, height, width in [(shapes, 15 + 5, 20), (many, 5, 4), ([((4, 4), (0, 0))], 0, 3)]:
        yield {
            "images": [rng.integers(0, 256, (*old, 3), dtype=np.uint8) for old, _ in listed],
            "sizes": [side for _, new in listed for side in new], "height": height, "width": width,
        }  # fmt: skip


class Image(ctypes.Structure):
    _fields_ = (
        ("pixels", Pointer), ("height", Int), ("width", Int), ("new_height", Int), ("new_width", Int),
    )  # fmt: skip


def resize_images(images, sizes, height, width, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        listed = (Image * len(images))(*(
            Image(d.put(image).address, *image.shape[:2], *sizes[2 * i : 2 * i + 2])
            for i, image in enumerate(images)
        ))  # fmt: skip
        out = d.empty((len(images), height, width, 3), np.uint8)
        d.call("frcnn_cuda_resize_images", ctypes.byref(listed), len(images), height, width, out)
        return d.get(out)
