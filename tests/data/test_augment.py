"""Boxes follow their images through resizing and flipping."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from frcnn.config import DataConfig
from frcnn.data.augment import augment, cut, recolored

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


def test_thin_images_are_flipped_and_cropped_to_arrays_that_torch_takes():
    """numpy calls a mirrored column contiguous, which torch does not take; half of a pixel is one."""
    for crop in (0.0, 1.0):
        for height, width in ((300, 1), (1, 300), (1, 1)):
            column = np.full((height, width, 3), 7, dtype=np.uint8)
            for seed in range(20):
                data = replace(
                    PLAIN,
                    size=(max(height, width), min(height, width)),
                    train_short_sides=(1,),
                    flip=1.0,
                    crop=crop,
                )
                rng = np.random.default_rng(seed)
                image, _, _ = augment(column, BOX[:0], LABEL[:0], data, rng)
                assert image.numel() and (image == 7).all()


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


def colored_boxes():
    """Four boxes, each of its own color on black, and a region to ignore."""
    image = np.zeros((90, 120, 3), dtype=np.uint8)
    boxes = np.array([[5, 5, 35, 25], [60, 10, 110, 50], [20, 50, 50, 85], [80, 60, 100, 80]], np.float32)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        image[y1:y2, x1:x2] = 60 * (number + 1)
    return image, np.concatenate([boxes, [[0, 0, 120, 90]]]).astype(np.float32), np.array([0, 1, 2, 3, -1])


@given(st.integers(0, 10**6))
def test_every_box_stays_on_its_pixels_whatever_is_cut_and_resized(seed):
    data = replace(PLAIN, crop=0.5, scale_jitter=(0.5, 2.0), flip=0.5)
    image, boxes, labels = augment(*colored_boxes(), data, np.random.default_rng(seed))
    height, width = image.shape[:2]
    assert max(height, width) <= 128 and min(height, width) <= 96 and len(boxes) > 0
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        if label >= 0 and x2 - x1 > 4 and y2 - y1 > 4:  # a resize blurs the edges
            inside = image[int((y1 + y2) / 2), int((x1 + x2) / 2)].tolist()
            assert inside == [60 * (label + 1)] * 3


@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 120))
def test_a_cut_keeps_a_box_and_drops_those_whose_center_is_outside(seed, height, width):
    sample = colored_boxes()
    image, boxes, labels = cut(sample, height, width, np.random.default_rng(seed))
    assert image.shape == (height, width, 3) and image.flags["C_CONTIGUOUS"]
    assert len(labels) == len(boxes) >= 1 and labels[-1] == -1
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()


def test_an_image_without_boxes_is_cut_anywhere():
    image = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    firsts = {cut((image, *empty), 6, 5, np.random.default_rng(seed))[0][0, 0, 0] for seed in range(200)}
    assert len(firsts) == 7 * 6


def test_scale_jitter_makes_smaller_images_and_cuts_larger_ones():
    data = replace(PLAIN, scale_jitter=(0.5, 2.0))
    shapes = [run(data, seed=seed)[0].shape[:2] for seed in range(100)]
    assert {(96, 128)} < set(shapes)
    assert all(48 <= h <= 96 and 64 <= w <= 128 for h, w in shapes)
    assert 20 < sum(shape == (96, 128) for shape in shapes) < 90


def test_colors_change_as_they_should():
    gray = np.full((4, 4, 3), 100, np.uint8)
    gray[0] = 50
    changed = recolored(gray, 0.5, np.random.default_rng(0))
    assert (changed[..., 0] == changed[..., 1]).all()  # gray stays gray
    colors = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.abs(recolored(colors, 0.0, np.random.default_rng(0)).astype(int) - colors).max() <= 1
    means = [recolored(gray, 0.5, np.random.default_rng(seed)).mean() for seed in range(300)]
    assert min(means) < 0.6 * gray.mean() and max(means) > 1.4 * gray.mean()
    assert abs(np.mean(means) / gray.mean() - 1) < 0.1


def test_none_of_it_happens_unless_asked_for():
    """What the zoo's recipes train on is as it was, random numbers included."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        data = replace(PLAIN, flip=0.5, train_short_sides=(48, 96))
        augment(*colored_boxes(), data, rng)
        other = np.random.default_rng(seed)
        other.choice((48, 96))
        other.random()
        assert rng.bit_generator.state == other.bit_generator.state
