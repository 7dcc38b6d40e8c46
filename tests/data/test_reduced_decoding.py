"""JPEG files that are reduced as they are decoded: never below what is needed, boxes on their pixels."""

import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_coco import write_content

from frcnn.config import DataConfig
from frcnn.data import load_dataset
from frcnn.data.loader import read_to_augment
from frcnn.read_image import ImageError, read_image

DATA = DataConfig(size=(160, 120), train_short_sides=(90, 120), reduced_decoding=True)
WIDTH, HEIGHT = 1001, 750
BOX = [200.0, 160.0, 320.0, 240.0]


def write(folder, name="a.jpg", orientation=1, said=(WIDTH, HEIGHT)):
    """A data set of one image with a bright box, stored as its EXIF orientation says."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x, y, width, height = map(int, BOX)
    pixels[y : y + height, x : x + width] = 220
    image = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    if orientation == 6:  # what is shown upright was stored turned by 90 degrees to the left
        image = image.transpose(PIL.Image.Transpose.ROTATE_90)
    (folder / "images").mkdir(exist_ok=True)
    image.save(folder / "images" / name, exif=exif)
    content = {
        "images": [{"id": 1, "file_name": name, "width": said[0], "height": said[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 76800, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "box"}],
    }
    return load_dataset(write_content(folder, content), folder / "images")


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_box_stays_on_its_pixels(tmp_path, orientation):
    dataset = write(tmp_path, orientation=orientation)
    pixels, boxes, labels = read_to_augment(dataset, 0, DATA, False)
    assert pixels.shape == (188, 251, 3) and labels.tolist() == [
        0
    ]  # a quarter, rounded up; 120x160 are enough
    rows, columns = np.nonzero(pixels[..., 0] > 110)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(boxes[0] - extent).max() <= 1
    assert boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"reduced_decoding": False}, (HEIGHT, WIDTH)),
        ({"train_short_sides": (60,)}, (94, 126)),
        ({"size": (320, 240), "train_short_sides": (240,)}, (375, 501)),
        ({"crop": 0.1}, (375, 501)),
        ({"scale_jitter": (0.1, 2.0)}, (375, 501)),
        ({"scale_jitter": (0.1, 2.0), "crop": 0.1}, (HEIGHT, WIDTH)),
        ({"size": (1333, 800), "train_short_sides": (800,)}, (HEIGHT, WIDTH)),
    ],
)
def test_no_less_than_augmentation_can_use(tmp_path, changes, shape):
    pixels, _, _ = read_to_augment(write(tmp_path), 0, replace(DATA, **changes), False)
    assert pixels.shape[:2] == shape
    whole = read_image(tmp_path / "images" / "a.jpg")
    assert (shape != whole.shape[:2]) or np.array_equal(pixels, whole)


def test_other_files_are_whole(tmp_path):
    for name in ("a.png", "a.webp"):
        pixels, boxes, _ = read_to_augment(write(tmp_path, name), 0, DATA, False)
        assert pixels.shape[:2] == (HEIGHT, WIDTH) and boxes[0, 0] == BOX[0]


def test_a_wrong_size_is_refused_even_if_it_is_the_reduced_one(tmp_path):
    with pytest.raises(
        ImageError, match=r"a.jpg is 1001x750 pixels .* says 251x188: its boxes would not fit"
    ):
        read_to_augment(write(tmp_path, said=(251, 188)), 0, DATA, False)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 300), st.integers(1, 300))
def test_a_part_by_two_four_or_eight_that_is_large_enough(tmp_path_factory, height, width, rows, columns):
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    PIL.Image.new("RGB", (width, height), (9, 99, 199)).save(path)
    found = read_image(path, (rows, columns)).shape[:2]
    divisor = max(d for d in (1, 2, 4, 8) if d == 1 or (height // d >= rows and width // d >= columns))
    assert found == (math.ceil(height / divisor), math.ceil(width / divisor))
