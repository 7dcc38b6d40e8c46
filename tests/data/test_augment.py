"""Boxes follow their images through resizing and flipping."""

from dataclasses import replace

import numpy as np
import torch

from frcnn.config import DataConfig
from frcnn.data.augment import augment

PLAIN = DataConfig(
    size=(128, 96), train_short_sides=(96,), flip=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rgb=False
)
BOX = np.array([[10, 8, 26, 20]], dtype=np.float32)
LABEL = np.array([3])


def bright_box() -> np.ndarray:
    """A bright box on black, 64x48 pixels."""
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[8:20, 10:26] = 200
    return image


def run(data: DataConfig, boxes=BOX, labels=LABEL, seed: int = 0):
    return augment(bright_box(), boxes, labels, data, np.random.default_rng(seed))


def bright_extent(image: torch.Tensor) -> list[int]:
    rows, columns = torch.where(image[..., 0] > 100)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def test_the_box_stays_on_its_pixels_when_resized():
    image, boxes, labels = run(PLAIN)
    assert image.shape == (96, 128, 3) and image.dtype == torch.uint8
    assert boxes.tolist() == [[20, 16, 52, 40]] == [bright_extent(image)]
    assert labels.tolist() == [3] and labels.dtype == torch.int64


def test_the_box_stays_on_its_pixels_when_flipped():
    image, boxes, _ = run(replace(PLAIN, flip=1.0))
    assert boxes.tolist() == [[76, 16, 108, 40]] == [bright_extent(image)]


def test_half_of_the_images_are_flipped():
    flipped = [run(replace(PLAIN, flip=0.5), seed=seed)[1][0, 0].item() == 76 for seed in range(200)]
    assert 70 < sum(flipped) < 130


def test_short_sides_are_drawn_from_the_list():
    data = replace(PLAIN, train_short_sides=(24, 48, 72))
    heights = [run(data, seed=seed)[0].shape[0] for seed in range(60)]
    assert set(heights) == {24, 48, 72}


def test_the_long_side_is_bounded():
    image, _, _ = run(replace(PLAIN, train_short_sides=(120,)))
    assert image.shape == (96, 128, 3)


def test_boxes_are_clipped_and_vanished_ones_dropped():
    boxes = np.array([[-5, -5, 12, 60], [63.99999999, 4, 80, 20], [64, 4, 90, 20]], dtype=np.float32)
    _, kept, labels = run(PLAIN, boxes, np.array([1, 2, 0]))
    assert kept.tolist() == [[0, 0, 24, 96]]
    assert labels.tolist() == [1]


def test_images_without_boxes_pass():
    _, boxes, labels = run(replace(PLAIN, flip=1.0), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert boxes.shape == (0, 4) and labels.shape == (0,)
