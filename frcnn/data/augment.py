"""One annotated image as the network trains on it; its augmentation: a random size, a horizontal flip."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frcnn.config import DataConfig
from frcnn.preprocess import resize


def augment(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """HWC uint8 BGR image, boxes [G, 4] in its pixels -> their `as_sample`, randomly resized and flipped."""
    short_side = int(rng.choice(data.train_short_sides))
    flip = rng.random() < data.flip
    resized, scale = resize(image, (data.size[0], short_side))
    height, width = resized.shape[:2]
    boxes = fitted(boxes, scale, (height, width))
    if flip:
        resized = np.ascontiguousarray(resized[:, ::-1])
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return as_sample(resized, boxes, labels)


def fitted(boxes: np.ndarray, scale: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Boxes [G, 4] times (x, y) scale, clipped to a (height, width)."""
    boxes = boxes * np.array([*scale, *scale], dtype=np.float32)
    return np.clip(boxes, 0, np.array([*size[::-1], *size[::-1]], dtype=np.float32))


def as_sample(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """HWC uint8 BGR image, boxes [G, 4] in its pixels and labels [G] -> what the network trains on.

    Returns the image as it is, boxes float32 and labels int64. A box of which nothing remains is dropped,
    since its size has no logarithm to learn.
    """
    remains = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return (
        torch.from_numpy(image),
        torch.from_numpy(np.ascontiguousarray(boxes[remains], dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(labels[remains], dtype=np.int64)),
    )
