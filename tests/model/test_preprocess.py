import cv2
import numpy as np
import pytest
import torch

from frcnn.config import DataConfig
from frcnn.preprocess import as_bgr, fit_size, normalise, pad, read_image, resize


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (427, 640, (800, 1199)),
        (640, 480, (1067, 800)),
        (100, 1000, (133, 1333)),
        (800, 1333, (800, 1333)),
    ],
)
def test_fit_size_bounds_the_long_and_the_short_side(height, width, expected):
    assert fit_size(height, width, (1333, 800)) == expected


def test_resize_reports_the_factor_of_each_axis():
    image = np.random.default_rng(0).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    resized, (scale_x, scale_y) = resize(image, (1333, 800))
    assert resized.shape == (800, 1199, 3)
    assert scale_x == 1199 / 640
    assert scale_y == 800 / 427
    assert np.array_equal(resized, cv2.resize(image, (1199, 800), interpolation=cv2.INTER_LINEAR))


def test_resize_refuses_what_would_vanish():
    with pytest.raises(ValueError, match="vanishes"):
        resize(np.zeros((2, 4000, 3), np.uint8), (100, 80))


def test_normalise_orders_channels_by_style():
    image = np.zeros((1, 1, 3), np.uint8)
    image[0, 0] = (10, 20, 30)  # blue, green, red
    rgb = normalise(image, DataConfig(mean=(1, 2, 3), std=(2, 4, 8)))
    assert rgb.flatten().tolist() == [(30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 8]
    bgr = normalise(image, DataConfig(mean=(1, 2, 3), std=(1, 1, 1), rgb=False))
    assert bgr.flatten().tolist() == [9, 18, 27]


def test_pad_fills_right_and_below_with_zeros():
    batch = pad([torch.ones(3, 33, 20), torch.ones(3, 10, 64)], 32)
    assert batch.shape == (2, 3, 64, 64)
    assert batch[0, :, :33, :20].all()
    assert batch.sum() == 3 * (33 * 20 + 10 * 64)


def test_exif_orientation_is_applied(tmp_path):
    from PIL import Image

    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape == (40, 20, 3)
    assert image[:15].mean() > 240
    assert image[25:].mean() < 15


def test_unreadable_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        read_image(tmp_path / "absent.jpg")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.jpg"):
        read_image(tmp_path / "page.jpg")


def test_as_bgr_takes_arrays_and_tensors_in_either_layout():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(as_bgr(torch.from_numpy(image)), image)
    assert np.array_equal(as_bgr(torch.from_numpy(image).permute(2, 0, 1)), image)
    for wrong in (image.astype(np.float32), image[..., 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            as_bgr(wrong)
    with pytest.raises(TypeError, match="list"):
        as_bgr([[0]])
