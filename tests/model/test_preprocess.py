import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from frcnn.as_pixels import as_bgr
from frcnn.config import DataConfig
from frcnn.preprocess import check_size, fit_size, normalize, pad, prepare, resize
from frcnn.read_image import ImageError, read_image


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


def test_normalize_orders_channels_by_style():
    image = np.zeros((1, 1, 3), np.uint8)
    image[0, 0] = (10, 20, 30)  # blue, green, red
    rgb = normalize(image, DataConfig(mean=(1, 2, 3), std=(2, 4, 8)))
    assert rgb.flatten().tolist() == [(30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 8]
    bgr = normalize(image, DataConfig(mean=(1, 2, 3), std=(1, 1, 1), rgb=False))
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


COLOR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOR, COLOR[..., :1]])
GRAY = COLOR[..., 1]


def test_arrays_and_tensors_of_every_layout():
    for given, expected in ((COLOR, COLOR), (ALPHA, COLOR), (GRAY, GRAY), (GRAY[..., None], GRAY)):
        expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
        tensor = torch.from_numpy(given)
        assert np.array_equal(as_bgr(given), expected)
        assert np.array_equal(as_bgr(tensor), expected)
        if given.ndim == 3:
            assert np.array_equal(as_bgr(tensor.permute(2, 0, 1)), expected)


def test_rgb_arrays_are_turned_round_and_files_are_not(tmp_path):
    for given in (COLOR, ALPHA, torch.from_numpy(ALPHA).permute(2, 0, 1)):
        assert np.array_equal(as_bgr(given, rgb=True), COLOR[..., ::-1])
    assert np.array_equal(as_bgr(GRAY, rgb=True), np.dstack([GRAY] * 3))
    PIL.Image.fromarray(COLOR).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", PIL.Image.fromarray(COLOR)):
        assert np.array_equal(as_bgr(given, rgb=True), COLOR[..., ::-1])


def test_floats_and_16_bits_become_8():
    for kind in (np.float32, np.float64):
        assert np.array_equal(as_bgr(COLOR.astype(kind) / 255), COLOR)
    assert np.array_equal(as_bgr(torch.from_numpy(COLOR) / 255), COLOR)
    assert np.abs(as_bgr((torch.from_numpy(COLOR) / 255).bfloat16()).astype(int) - COLOR).max() <= 1
    deep = COLOR.astype(np.uint16) * 257
    for given in (deep, torch.from_numpy(deep), deep.astype(">u2")):
        assert np.array_equal(as_bgr(given), COLOR)
    with pytest.raises(ImageError, match="1/16 of the range"):
        as_bgr(deep >> 4)


def test_what_comes_out_is_plain_memory():
    """Reversed strides (an RGB array turned by [..., ::-1]) and read-only memory are common."""
    frozen = COLOR.copy()
    frozen.flags.writeable = False
    for given in (
        COLOR[..., ::-1],
        COLOR[::-1],
        frozen,
        COLOR[:, ::2],
        np.broadcast_to(GRAY[..., None], (5, 7, 3)),
    ):
        found = as_bgr(given)
        assert np.array_equal(found, given) and found.flags.c_contiguous and found.flags.writeable


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
)
def test_pillow_images_of_every_mode(mode):
    image = PIL.Image.fromarray(COLOR)
    if mode in ("I;16", "I"):
        image = PIL.Image.fromarray(GRAY.astype(np.uint16) * 257)
        image = image.convert("I") if mode == "I" else image
        expected = np.dstack([GRAY] * 3)
    elif mode == "F":
        image, expected = PIL.Image.fromarray(GRAY.astype(np.float32) / 255), np.dstack([GRAY] * 3)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    assert image.mode == mode
    found = as_bgr(image)
    assert np.array_equal(found, expected) and found.flags.writeable


def test_a_pillow_image_is_taken_as_it_lies(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(COLOR).save(tmp_path / "turned.png", exif=exif)
    assert as_bgr(PIL.Image.open(tmp_path / "turned.png")).shape == (5, 7, 3)
    assert read_image(tmp_path / "turned.png").shape == (7, 5, 3)


def test_what_cannot_be_used_is_refused(tmp_path):
    wrong = (
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
        torch.zeros(1, 3, 4, 4),
        COLOR.astype(np.int64),
        COLOR > 100,
    )
    for given in wrong:
        with pytest.raises(ImageError, match=r"an image array is uint8, uint16 or float.*got"):
            as_bgr(given)
    for values in (COLOR.astype(np.float32), COLOR / 255 - 0.5, np.where(COLOR > 99, np.nan, 0.5)):
        with pytest.raises(ImageError, match="the image array has floats that are not all within 0 to 1"):
            as_bgr(values)
    with pytest.raises(ImageError, match="the Pillow image has integers that are not within 0 to 65535"):
        as_bgr(PIL.Image.fromarray(np.full((4, 4), 70000, np.int32)))
    PIL.Image.fromarray(np.repeat(COLOR, 50, 0)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(ImageError, match="the Pillow image cannot be read"):
        as_bgr(PIL.Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(TypeError, match="not list"):
        as_bgr([[0]])


def test_a_sliver_is_named(tmp_path):
    sliver = np.zeros((1, 3000, 3), np.uint8)
    with pytest.raises(ImageError, match="an image of 3000x1 pixels vanishes"):
        resize(sliver, (1333, 800))
    PIL.Image.fromarray(sliver).save(tmp_path / "sliver.png")
    with pytest.raises(ImageError, match=r"sliver\.png: an image of 3000x1"):
        prepare(tmp_path / "sliver.png", DataConfig())


@pytest.mark.parametrize("size", [(0, 800), (800,), (800.5, 600), (-1, 2), (1, 2, 3)])
def test_sizes_are_two_positive_integers(size):
    with pytest.raises(ValueError, match="it is two whole numbers above 0"):
        check_size(size)
    check_size(None)
    check_size((np.int64(3), 4))
