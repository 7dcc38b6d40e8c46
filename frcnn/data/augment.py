"""Training augmentation of one image: a random size and a random horizontal flip."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frcnn.config import DataConfig
from frcnn.preprocess import normalise, resize


def augment(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """HWC uint8 BGR image and its boxes [G, 4] in pixels -> what the network trains on.

    Returns the normalised image [3, H, W], the boxes in its pixels and their labels. Boxes are clipped to
    the image; one of which nothing remains is dropped, since its size has no logarithm to learn.
    """
    short_side = int(rng.choice(data.train_short_sides))
    flip = rng.random() < data.flip
    resized, (scale_x, scale_y) = resize(image, (data.size[0], short_side))
    height, width = resized.shape[:2]

    boxes = boxes * np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    if flip:
        resized = np.ascontiguousarray(resized[:, ::-1])
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    remains = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return (
        normalise(resized, data),
        torch.from_numpy(np.ascontiguousarray(boxes[remains], dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(labels[remains], dtype=np.int64)),
    )
