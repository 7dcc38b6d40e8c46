"""One annotated image as the network trains on it, and its augmentation."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from frcnn.config import DataConfig
from frcnn.preprocess import bilinear, fit_size, resize

Annotated = tuple[np.ndarray, np.ndarray, np.ndarray]
"""HWC uint8 BGR image, boxes [G, 4] in its pixels, labels [G]."""


def augment(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """HWC uint8 BGR image, boxes [G, 4] in its pixels -> their `as_sample`, changed at random as `data` says:
    cut, resized and cut again, flipped, in other colors."""
    size = data.size[0], int(rng.choice(data.train_short_sides))
    flip = rng.random() < data.flip
    if data.crop and rng.random() < data.crop:
        height, width = np.ceil(np.array(image.shape[:2]) * rng.uniform(0.5, 1, 2)).astype(int)
        image, boxes, labels = cut((image, boxes, labels), height, width, rng)
    if data.scale_jitter == (1, 1):
        resized, scale = resize(image, size)
        boxes = fitted(boxes, scale, resized.shape[:2])
    else:
        resized, boxes, labels = _jittered((image, boxes, labels), size, rng.uniform(*data.scale_jitter), rng)
    if flip:
        width = resized.shape[1]
        resized = resized[:, ::-1].copy()
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if data.color_jitter:
        resized = recolored(resized, data.color_jitter, rng)
    return as_sample(resized, boxes, labels)


def cut(sample: Annotated, height: int, width: int, rng: np.random.Generator) -> Annotated:
    """A part of so many pixels at most, around the center of a box drawn at random, if there is any.

    Boxes whose center lies outside are dropped, the others clipped; what is to be ignored stays as far as it
    reaches in.
    """
    image, boxes, labels = sample
    whole = np.array(image.shape[1::-1])  # x, y, as below
    part = np.minimum(whole, (width, height))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = np.zeros(2), whole - part
    if len(boxes):
        around = np.clip(rng.choice(centers), 0, whole - 1)
        low, high = np.maximum(low, np.floor(around - part) + 1), np.minimum(high, np.floor(around))
    corner = rng.integers(low.astype(int), high.astype(int) + 1)
    inside = ((centers >= corner) & (centers < corner + part)).all(1) | (labels < 0)
    moved = boxes[inside] - np.tile(corner, 2).astype(boxes.dtype)
    pixels = image[corner[1] : corner[1] + part[1], corner[0] : corner[0] + part[0]]
    return (
        np.ascontiguousarray(pixels),
        np.clip(moved, 0, np.tile(part, 2).astype(boxes.dtype)),
        labels[inside],
    )


def _jittered(sample: Annotated, size: tuple[int, int], factor: float, rng: np.random.Generator) -> Annotated:
    """Resized to `factor` times what fits `size`, and cut to what fits it."""
    image, boxes, labels = sample
    height, width = fit_size(image.shape[0], image.shape[1], size)
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    resized = bilinear(image, rows, columns)
    boxes = fitted(boxes, (columns / image.shape[1], rows / image.shape[0]), (rows, columns))
    return cut((resized, boxes, labels), height, width, rng) if factor > 1 else (resized, boxes, labels)


def recolored(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Other brightness, contrast, saturation and hue, by up to `strength` (hue: a tenth of it, in turns).

    Contrast is the distance from the mean gray, saturation that from each pixel's own gray.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    turn = rng.uniform(-strength, strength) / 10
    pixels = image.astype(np.float32) * np.float32(brightness / 255)
    mean = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).mean()
    pixels = mean + (pixels - mean) * np.float32(contrast)
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[..., None]
    pixels = gray + (pixels - gray) * np.float32(saturation)
    hsv = cv2.cvtColor(np.clip(pixels, 0, 1), cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turn)) % 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255).astype(np.uint8)


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
