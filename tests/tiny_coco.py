"""A tiny data set in COCO format: bright rectangles on a dark ground, wide and tall images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = [{"id": 40, "name": "square"}, {"id": 7, "name": "bar"}]
"""Not in the order of their ids, and with gaps, as real files have them."""


def write_tiny(folder: Path, images: int = 6, seed: int = 0) -> tuple[Path, Path]:
    """Write the images and their annotations; returns the annotation file and the image folder."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(images):
        width, height = (64, 48) if number % 3 else (48, 64)
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(2):
            category = CATEGORIES[rng.integers(2)]
            box_width, box_height = (16, 16) if category["name"] == "square" else (30, 10)
            x, y = int(rng.integers(width - box_width)), int(rng.integers(height - box_height))
            image[y : y + box_height, x : x + box_width] = rng.integers(150, 255, 3)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": 100 - number,
                    "category_id": category["id"],
                    "bbox": [x, y, box_width, box_height],
                    "area": box_width * box_height,
                    "iscrowd": 0,
                }
            )
        name = f"{number}.png"
        cv2.imwrite(str(folder / "images" / name), image)
        content["images"].append({"id": 100 - number, "file_name": name, "width": width, "height": height})
    return write_content(folder, content), folder / "images"


def write_content(folder: Path, content: object, name: str = "annotations.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def read_content(path: Path) -> dict:
    return json.loads(path.read_text())


def perfect(dataset):
    """The boxes that training learns, in COCO's results form."""
    return [
        {
            "image_id": int(dataset.image_ids[index]),
            "category_id": dataset.category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9,
        }
        for index in range(len(dataset))
        for (x1, y1, x2, y2), label in zip(*(part.tolist() for part in dataset.boxes_of(index)), strict=True)
    ]
