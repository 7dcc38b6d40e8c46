"""Preprocessing of real images, pixel for pixel, against cv2 and numpy used as MMDetection does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import frcnn
from frcnn.preprocess import fit_size, normalize, pad, resize
from frcnn.read_image import read_image
from frcnn.zoo.reference_case import CASES

BLOOD_CELLS = Path(__file__).parents[1] / "data" / "cases" / "bccd" / "BloodImage_00000.jpg"
SIZES = [(1333, 800), (1333, 640), (1333, 736), (1333, 768), (1000, 600), (320, 240), (333, 500), (97, 61)]


@pytest.fixture(scope="module")
def images():
    """An image and the package's half-size copy of it, upright and on their side."""
    upright = [cv2.imread(str(path)) for path in (BLOOD_CELLS, CASES / "image0.png")]
    return [*upright, *(np.ascontiguousarray(image.transpose(1, 0, 2)[:, 3:]) for image in upright)]


def expected(image, size, style):
    """Resize by the smaller of the two ratios, sizes rounded half up; then normalize in float64."""
    height, width = image.shape[:2]
    scale = min(max(size) / max(height, width), min(size) / min(height, width))
    new = (int(width * scale + 0.5), int(height * scale + 0.5))
    resized = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
    if style == "pytorch":
        mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
        values = (resized[..., ::-1].astype(np.float64) - mean) / std
    else:
        values = resized.astype(np.float64) - np.array([103.53, 116.28, 123.675])
    return resized, (new[0] / width, new[1] / height), values


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("size", SIZES)
def test_real_images(size, style, images):
    name = "faster_rcnn_r50_fpn_1x_coco" if style == "pytorch" else "faster_rcnn_r50_caffe_fpn_1x_coco"
    data = frcnn.recipe(name).data
    for original in images:
        resized, scale = resize(original, size)
        wanted, wanted_scale, values = expected(original, size, style)
        assert np.array_equal(resized, wanted)
        assert scale == pytest.approx(wanted_scale, abs=1e-12)
        assert fit_size(*original.shape[:2], size) == wanted.shape[:2]
        image = normalize(resized, data)
        assert image.dtype == torch.float32
        # float32 subtraction at 255 is exact to 2**-17; dividing by a std of 57 makes the bound smaller still
        assert np.abs(image.permute(1, 2, 0).numpy() - values).max() < 2**-16


def test_an_image_of_the_right_size_is_not_touched():
    image = read_image(CASES / "image0.png")
    resized, scale = resize(image, (320, 240))
    assert np.array_equal(resized, image) and scale == (1.0, 1.0)


def test_the_half_size_image_of_the_cases_is_what_resizing_gives():
    resized, scale = resize(read_image(BLOOD_CELLS), (320, 240))
    assert np.array_equal(resized, read_image(CASES / "image0.png")) and scale == (0.5, 0.5)


def test_padding_is_zero_after_normalization():
    original = read_image(CASES / "image0.png")[:233, :301]
    image = normalize(original, frcnn.recipe("faster_rcnn_r50_fpn_1x_coco").data)
    batch = pad([image, image[:, :100, :320]], 32)
    assert batch.shape == (2, 3, 256, 320)
    assert torch.equal(batch[0, :, :233, :301], image)
    assert not batch[0, :, 233:].any() and not batch[0, :, :, 301:].any() and not batch[1, :, 100:].any()
