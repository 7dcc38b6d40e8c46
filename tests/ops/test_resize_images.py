"""Images resized exactly as cv2 does, which is what MMDetection's numbers were computed with."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

import frcnn_ops


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(image, height, width):
    found = frcnn_ops.resize_images([torch.from_numpy(image)], [(height, width)], (height + 1, width + 2))
    assert not found[0, height:].any() and not found[0, :, width:].any()
    return found[0, :height, :width].numpy()


def sizes():
    """Old and new (height, width): up, down, odd, by whole numbers, one pixel, the recipes'."""
    rng = np.random.default_rng(0)
    yield from (tuple(map(int, rng.integers(1, 120, 4))) for _ in range(150))
    for height, width in rng.integers(1, 60, (20, 2)).tolist():
        for factor in (2, 3, 4):
            yield height, width, factor * height, factor * width
            yield factor * height, factor * width, height, width
        yield 2 * height, 2 * width, height, 2 * width
    yield from [(1, 1, 50, 70), (50, 70, 1, 1), (1, 90, 33, 45), (91, 1, 45, 33), (480, 640, 800, 1067)]
    yield from [(427, 640, 800, 1199), (1333, 1000, 1067, 800), (600, 1000, 600, 1000)]


def test_every_pixel_is_cv2s():
    rng = np.random.default_rng(1)
    for height, width, new_height, new_width in sizes():
        image = noise(rng, height, width)
        wanted = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        found = resized(image, new_height, new_width)
        assert np.array_equal(found, wanted), (height, width, new_height, new_width)


def test_extremes_stay():
    """White stays white whatever the weights are."""
    for value in (0, 255):
        assert (resized(np.full((37, 53, 3), value, np.uint8), 61, 20) == value).all()


def test_images_of_a_batch_do_not_touch_each_other(threads):
    rng = np.random.default_rng(2)
    images = [torch.from_numpy(noise(rng, *size)) for size in ((20, 30), (9, 50), (41, 8))]
    new = [(31, 17), (40, 40), (3, 39)]
    threads(2)
    together = frcnn_ops.resize_images(images, new, (40, 40))
    for one, image, size in zip(together, images, new, strict=True):
        assert torch.equal(one, frcnn_ops.resize_images([image], [size], (40, 40))[0])


def test_other_strides():
    image = torch.from_numpy(noise(np.random.default_rng(3), 40, 30))
    turned, reversed_ = image.transpose(0, 1), image.flip(-1)
    for strange in (turned, reversed_, image[::2, 3:]):
        expected = frcnn_ops.resize_images([strange.contiguous()], [(25, 25)], (25, 25))
        assert torch.equal(frcnn_ops.resize_images([strange], [(25, 25)], (25, 25)), expected)


@pytest.mark.parametrize(
    ("images", "sizes", "message"),
    [
        ([torch.zeros(3, 4, 3)], [(2, 2)], "images is Float, expected uint8"),
        (
            [torch.zeros(3, 4, dtype=torch.uint8)],
            [(2, 2)],
            r"images has shape \[3, 4\], expected \[h, w, 3\]",
        ),
        ([torch.zeros(3, 4, 3, dtype=torch.uint8)], [], "sizes has 0 numbers, expected 2"),
        (
            [torch.zeros(3, 4, 3, dtype=torch.uint8)],
            [(9, 2)],
            "sizes hold 9 x 2, expected at most height x width",
        ),
        ([torch.zeros(0, 4, 3, dtype=torch.uint8)], [(2, 2)], "of which nothing can be made"),
    ],
)
def test_bad_arguments(images, sizes, message):
    with pytest.raises(RuntimeError, match=f"resize_images: .*{message}"):
        frcnn_ops.resize_images(images, sizes, (5, 5))


def test_compiles():
    images = [torch.from_numpy(noise(np.random.default_rng(4), *size)) for size in ((5, 9), (8, 8))]
    arguments = images, [(7, 7), (3, 4)], (8, 8)
    compiled = torch.compile(lambda *a: frcnn_ops.resize_images(*a) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), frcnn_ops.resize_images(*arguments) + 1)
