"""A detection data set made of real handwritten digits (scikit-learn's, 8x8 pixels each).

Every image is a canvas with a random background on which digits of random size, slant and color lie, dark
on light or light on dark, some overlapping. Training and held-out images use different originals.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error

CANVASES = ((192, 144), (144, 192), (160, 144), (240, 180), (288, 216), (216, 288))
"""(width, height) in pixels."""
DIGIT_HEIGHT = (0.14, 0.42)
"""Of the canvas's short side."""
MAX_OVERLAP = 0.2
"""Largest share of a digit's box that lies under another one."""
MIN_CONTRAST = 90
"""Between a digit's and its background's gray levels, of 255."""
INK = 0.4
"""A pixel with at least this much ink belongs to the digit; its box is the smallest around these."""


def write_digits(folder: Path, train_images: int, held_out_images: int, seed: int = 0) -> dict[str, Path]:
    """Write images/ and one COCO annotation file per split; returns the files by split's name."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.images))
    held_out = len(order) // 4
    splits = {"train": (order[held_out:], train_images), "held_out": (order[:held_out], held_out_images)}
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, (originals, count) in splits.items():
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        }
        for number in range(count):
            image, boxes, labels = _draw_image(digits, originals, rng)
            file_name = f"{name}_{number:04d}.jpg"
            if not cv2.imwrite(str(images / file_name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
                raise OSError(f"{images / file_name} could not be written")
            height, width = image.shape[:2]
            content["images"].append(
                {"id": number + 1, "file_name": file_name, "width": width, "height": height}
            )
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number + 1,
                        "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(content))
    return files


def _draw_image(
    digits, originals: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """An HWC uint8 BGR image, its boxes (x1, y1, x2, y2) and its digits."""
    width, height = CANVASES[rng.integers(len(CANVASES))]
    canvas = _background(width, height, rng)
    boxes: list[list[int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(4, 11))):
        original = originals[rng.integers(len(originals))]
        ink = _handwriting(digits.images[original], rng.uniform(*DIGIT_HEIGHT) * min(width, height), rng)
        ink_height, ink_width = ink.shape
        for _ in range(20):
            x, y = int(rng.integers(width - ink_width)), int(rng.integers(height - ink_height))
            box = [x, y, x + ink_width, y + ink_height]
            if all(_covered(box, other) <= MAX_OVERLAP for other in boxes):
                _paint(canvas[y : y + ink_height, x : x + ink_width], ink, rng)
                boxes.append(box)
                labels.append(int(digits.target[original]))
                break
    noise = rng.normal(0, rng.uniform(0, 6), canvas.shape)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), boxes, labels


def _handwriting(original: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """8x8 gray levels 0…16 -> ink 0…1 of about the given height, slanted and stretched, cropped to itself."""
    side = round(height * 1.1)
    large = cv2.resize(original.astype(np.float32) / 16, (side, side), interpolation=cv2.INTER_CUBIC)
    large = cv2.copyMakeBorder(large, *[side // 3] * 4, cv2.BORDER_CONSTANT, value=0)
    center = large.shape[0] / 2
    turn = cv2.getRotationMatrix2D((center, center), rng.uniform(-10, 10), 1.0)
    turn[:, :2] = turn[:, :2] @ np.array([[rng.uniform(0.8, 1.2), rng.uniform(-0.15, 0.15)], [0, 1]])
    turn[:, 2] = center - turn[:, :2] @ [center, center]
    large = cv2.warpAffine(large, turn, large.shape[::-1], flags=cv2.INTER_LINEAR)
    rows, columns = np.where(large > INK)
    return np.clip(large[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], 0, 1)


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [height, width, 3]: plain, gradient, clouds or stripes."""
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    second = first + (second - first) * 0.45
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        mix = np.zeros_like(x)
    elif kind == 1:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 2:
        cells = int(rng.integers(3, 12))
        clouds = rng.random((cells, cells)).astype(np.float32)
        mix = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * along * rng.uniform(3, 12))
    mix = mix[..., None].astype(np.float32)
    return first * (1 - mix) + second * mix


def _paint(region: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> None:
    """Blend a color that stands out from the region into it, in place."""
    gray = float(region.mean())
    while True:
        color = rng.uniform(0, 255, 3)
        if abs(color.mean() - gray) >= MIN_CONTRAST:
            break
    strength = np.clip(ink * 1.3, 0, 1)[..., None]
    region[:] = region * (1 - strength) + color.astype(np.float32) * strength


def _covered(box: list[int], other: list[int]) -> float:
    """Share of the smaller box that the two have in common."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller
