"""Few input shapes: every image fits one, they are few, and no other choice of them pads less."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_recipe import small

from frcnn.detector import FasterRCNN
from frcnn.inference import shapes
from frcnn.inference.shapes import MOST_SHAPES, few_shapes, smallest_holding
from frcnn.preprocess import fit_size, padded, prepare
from frcnn.structures import Batch
from frcnn.zoo.recipes import recipe

SIZES = [(1333, 800), (1000, 600), (640, 640), (128, 96), (200, 33)]


@pytest.mark.parametrize("size", SIZES)
def test_every_image_fits_one_of_at_most_eight(size):
    chosen = few_shapes(size, 32)
    assert 0 < len(chosen) <= MOST_SHAPES
    assert all(side % 32 == 0 for shape in chosen for side in shape)
    random = np.random.default_rng(0)
    for ratio in np.exp(random.uniform(-4, 4, 2000)):
        side = random.uniform(50, 4000)
        height, width = max(1, round(side)), max(1, round(side * ratio))
        resized = fit_size(height, width, size)
        if min(resized) >= 1:
            assert smallest_holding(resized, chosen) is not None, (height, width)


def test_common_images_are_padded_little():
    """The recipe's shapes: how much more area than padding to a multiple of 32, by aspect ratio."""
    chosen = few_shapes((1333, 800), 32)
    for ratio in (1.0, 4 / 3, 3 / 2, 16 / 9):
        for height, width in ((480, 480 * ratio), (480 * ratio, 480)):
            resized = fit_size(round(height), round(width), (1333, 800))
            exact, shape = padded(resized, 32), smallest_holding(resized, chosen)
            assert shape[0] * shape[1] <= 1.15 * exact[0] * exact[1]


def test_no_other_choice_pads_less(monkeypatch):
    """Against all of them, where they are few."""
    monkeypatch.setattr(shapes, "MOST_SHAPES", 4)
    size = (200, 96)
    chain = [(96, w) for w in range(96, 225, 32)] + [(64, 224), (32, 224)]
    ratios = [max(h / w, shapes.LONGEST) for h, w in chain] + [shapes.LONGEST]

    def padding(chosen):
        areas = [min(s[0] * s[1] for s in chosen if s[0] >= h and s[1] >= w) for h, w in chain]
        return sum(area * (a - b) for area, a, b in zip(areas, ratios, ratios[1:], strict=False))

    possible = [s for s in itertools.product((32, 64, 96), range(32, 225, 32))]
    covering = [pair for pair in itertools.combinations(possible, 2) if (96, 224) in pair]
    few_shapes.cache_clear()
    lying = [(h, w) for h, w in few_shapes(size, 32) if h <= w]
    few_shapes.cache_clear()
    assert padding(lying) == pytest.approx(min(map(padding, covering)), rel=1e-3)


def test_what_is_larger_than_the_recipe_keeps_its_own_shape():
    assert smallest_holding((2000, 3000), few_shapes((1333, 800), 32)) is None


@pytest.fixture(scope="module")
def detector():
    entry = small(recipe("faster_rcnn_r50_fpn_1x_coco"))
    torch.manual_seed(0)
    roi_head = replace(entry.model.roi_head, score_threshold=0.001)  # nothing was learned
    return FasterRCNN(replace(entry.model, roi_head=roi_head), entry.data).eval()


def test_few_shapes_are_a_choice_of_padding_and_nothing_else(detector):
    """What comes out is what the network gives for the image in that shape."""
    size = (320, 128)
    detector.data = replace(detector.data, size=size)
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (128, width, 3), np.uint8) for width in range(140, 320, 32)]
    items = [prepare(image, detector.data) for image in images]
    image, item, shape = next(
        (image, item, shape)
        for image, item in zip(images, items, strict=True)
        if (shape := smallest_holding(item.size, few_shapes(size, 32))) != item.padded_size
    )
    plain, few = detector.optimize(), detector.optimize(few_shapes=True)
    pixels = torch.zeros(1, *shape, 3, dtype=torch.uint8)
    pixels[0, : item.size[0], : item.size[1]] = torch.from_numpy(item.pixels)
    wanted = plain.detect(Batch(pixels, (item.size,)), [item.scale])[0]
    found = few.predict(image)
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found.scores, wanted.scores)
    assert len(found) > 0


def test_missing_images_of_a_batch_change_nothing(detector):
    fast = detector.optimize()
    images = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), np.uint8)
    items = [prepare(image, fast.data) for image in images]
    full, filled = fast._launch_prepared(items)(), fast._launch_prepared(items, least=3)()
    assert len(full) == len(filled) == 2 and len(full[0]) > 0
    for one, other in zip(full, filled, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
