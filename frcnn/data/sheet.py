"""A sheet of images with what is annotated on them."""

from __future__ import annotations

import math

import cv2
import numpy as np

from frcnn.as_pixels import visible
from frcnn.data.annotations import DatasetError
from frcnn.data.coco import CocoDataset
from frcnn.draw import draw_boxes
from frcnn.preprocess import fit_size

CELL = 320
"""Pixels of a cell's sides; larger images are shrunk to fit."""
GAP = 4


def sheet(dataset: CocoDataset, count: int = 16, class_name: str | None = None, seed: int = 0) -> np.ndarray:
    """Images drawn at random, their boxes drawn on them, in the order of the data set: HWC uint8 BGR.

    class_name: only images that have this class. Crowd regions are captioned so. Raises DatasetError where
    there is no such class or image, ImageError and OSError for images that cannot be read.
    """
    chosen = np.arange(len(dataset))
    if class_name is not None:
        if class_name not in dataset.class_names:
            raise DatasetError(
                f"{dataset.annotation_file} has no class {class_name!r}, but "
                + ", ".join(dataset.class_names)
            )
        owners = np.repeat(chosen, np.diff(dataset.box_offsets))
        chosen = np.unique(owners[dataset.labels == dataset.class_names.index(class_name)])
        if not len(chosen):
            raise DatasetError(f"{dataset.annotation_file}: no image has a {class_name}")
    chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:count])
    images = [annotated(dataset, index) for index in chosen.tolist()]
    columns = math.ceil(math.sqrt(len(images)))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return np.concatenate([_row(row, columns) for row in rows])[:-GAP, :-GAP]


def _row(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images side by side on white, a gap behind and below each."""
    row = np.full((max(map(len, images)) + GAP, columns * (CELL + GAP), 3), 255, dtype=np.uint8)
    for position, image in enumerate(images):
        left = position * (CELL + GAP)
        row[: len(image), left : left + image.shape[1]] = image
    return row


def annotated(dataset: CocoDataset, index: int) -> np.ndarray:
    """An image with its annotations, shrunk to fit a cell, HWC uint8 BGR."""
    pixels, scale = shrunk(visible(dataset.read(index)))
    rows = slice(dataset.box_offsets[index], dataset.box_offsets[index + 1])
    corners = dataset.xywh[rows].copy()
    corners[:, 2:] += corners[:, :2]
    labels, crowd = dataset.labels[rows].tolist(), dataset.crowd[rows].tolist()
    captions = [
        dataset.class_names[label] + (" (crowd)" if is_crowd else "")
        for label, is_crowd in zip(labels, crowd, strict=True)
    ]
    return draw_boxes(pixels, corners * scale, labels, captions)


def shrunk(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image made to fit a cell if it is larger, and what coordinates x, y, x, y are multiplied by."""
    height, width = pixels.shape[:2]
    fitted = fit_size(height, width, (CELL, CELL)) if max(height, width) > CELL else (height, width)
    scale = np.array([fitted[1], fitted[0]] * 2) / np.array([width, height] * 2)
    return cv2.resize(pixels, fitted[::-1], interpolation=cv2.INTER_AREA), scale
