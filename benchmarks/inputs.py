"""What the benchmark looks at: images, and boxes to train on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from frcnn.read_image import read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def make_images(
    count: int, height: int, width: int, folder: Path | None = None, seed: int = 0
) -> tuple[np.ndarray, str]:
    """Images [count, height, width, 3] uint8 BGR, and what they are.

    With a folder, its images are tiled side by side at their own size; without one, images are generated.
    Raises ValueError if the folder holds no image.
    """
    if folder is None:
        made = np.stack([generated(height, width, seed + index) for index in range(count)])
        return made, "generated images (noise with a natural spectrum and textured shapes)"
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--images {folder}: no image in that folder ({', '.join(sorted(SUFFIXES))})")
    tiles = iter(_forever(files))
    made = np.stack([tiled(tiles, height, width) for _ in range(count)])
    return made, f"images of {folder.name}/ tiled at their own size"


def tiled(tiles, height: int, width: int) -> np.ndarray:
    """Fill a canvas row by row with the next tiles; what sticks out is cut off."""
    canvas = np.zeros((height, width, 3), np.uint8)
    top = 0
    while top < height:
        left, bottom = 0, top + 1
        while left < width:
            tile = next(tiles)[: height - top, : width - left]
            canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            left += tile.shape[1]
            bottom = max(bottom, top + tile.shape[0])
        top = bottom
    return canvas


def _forever(files: list[Path]):
    while True:
        yield from map(read_image, files)


def generated(height: int, width: int, seed: int) -> np.ndarray:
    """An image with a natural image's spectrum (amplitude falls as 1/frequency) and shapes on it."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0, np.float32)
    octave = max(height, width)
    while octave >= 2:
        grid = (-(-height // octave) + 1, -(-width // octave) + 1, 3)
        noise = random.normal(size=grid).astype(np.float32)
        noise = 0.7 * noise.mean(-1, keepdims=True) + 0.3 * noise
        smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        image += 60.0 * np.sqrt(octave / max(height, width)) * smooth
        octave //= 2
    for _ in range(24):
        side = np.exp(random.uniform(np.log(16), np.log(max(17, min(height, width) / 2)), 2)).astype(int)
        center = (int(random.uniform(0, width)), int(random.uniform(0, height)))
        mask = np.zeros((height, width), np.uint8)
        angle = random.uniform(0, 180)
        if random.random() < 0.5:
            cv2.ellipse(mask, center, (int(side[0]) // 2, int(side[1]) // 2), angle, 0, 360, 255, -1)
        else:
            corners = cv2.boxPoints((center, (float(side[0]), float(side[1])), angle))
            cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
        inside = mask > 0
        texture = random.normal(0, random.uniform(2, 25), (int(inside.sum()), 1))
        image[inside] = 0.3 * image[inside] + 0.7 * random.uniform(20, 235, 3) + texture
    return image.clip(0, 255).astype(np.uint8)


def annotations(
    count: int, height: int, width: int, num_classes: int, objects: int = 8, seed: int = 0
) -> tuple[list[list[list[float]]], list[list[int]]]:
    """Boxes and labels of `objects` objects per image, as COCO has on average; sides 24 px to half of it."""
    random = np.random.default_rng(seed)
    boxes, labels = [], []
    for _ in range(count):
        longest = np.array([width, height]) / 2
        sides = np.exp(random.uniform(np.log(np.minimum(24, longest / 2)), np.log(longest), (objects, 2)))
        corner = random.uniform(0, 1, (objects, 2)) * ([width, height] - sides)
        boxes.append(np.hstack([corner, corner + sides]).tolist())
        labels.append(random.integers(0, num_classes, objects).tolist())
    return boxes, labels
