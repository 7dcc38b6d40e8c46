"""Image files of every kind: decoded as cv2 does, converted by a stated rule, or refused by name."""

import io
import os
import struct

import cv2
import numpy as np
import PIL.Image
import pytest
from huge_png import huge_png
from PIL import features

from frcnn.read_image import ImageError, read_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged metadata
SIZES = [(64, 64), (61, 97), (7, 5), (1, 1), (1, 300)]
JPEG = [
    pytest.param("JPEG", {"subsampling": n, "progressive": p, "quality": q}, id=f"jpeg-{n}-{p}-{q}")
    for n in (0, 1, 2)  # 4:4:4, 4:2:2, 4:2:0
    for p in (False, True)
    for q in (40, 92)
]
SIMPLE = [
    pytest.param("PNG", {}, id="png"),
    pytest.param("BMP", {}, id="bmp"),
    pytest.param("PPM", {}, id="ppm"),
    pytest.param("GIF", {}, id="gif"),
    pytest.param("TIFF", {}, id="tiff"),
    pytest.param("TIFF", {"compression": "tiff_lzw"}, id="tiff-lzw"),
    pytest.param("WEBP", {"quality": 80}, id="webp"),
    pytest.param("WEBP", {"lossless": True}, id="webp-lossless"),
]
OPTIONAL = [
    pytest.param(kind, {}, id=kind, marks=pytest.mark.skipif(not features.check(name), reason="no decoder"))
    for kind, name in (("JPEG2000", "jpg_2000"), ("AVIF", "avif"))
]


def random_image(height, width, seed=0):
    """RGB, smooth with some noise."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """Bytes -> what read_image makes of a file of them; an error must name the file."""

    def read(content, name="image"):
        (tmp_path / name).write_bytes(content)
        try:
            return read_image(tmp_path / name)
        except ImageError as error:
            assert str(tmp_path / name) in str(error)
            raise

    return read


def by_cv2(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize(("kind", "options"), [*JPEG, *SIMPLE])
def test_pixels_are_cv2s(kind, options, read):
    """Bit for bit: the reference's numbers come from cv2. (cv2 may lack JPEG 2000 and AVIF.)"""
    for number, size in enumerate(SIZES):
        content = encoded(random_image(*size, seed=number), kind, **options)
        if (expected := by_cv2(content)) is None:
            assert kind == "GIF"  # older cv2
            continue
        found = read(content)
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_gray_is_repeated(kind, read):
    content = encoded(random_image(61, 97)[..., 0], kind)
    found = read(content)
    assert found.shape == (61, 97, 3) and np.array_equal(found, by_cv2(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied(kind, orientation, read):
    """0 and 9 do not exist and turn nothing."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = encoded(random_image(20, 31), kind, exif=exif)
    found = read(content)
    assert np.array_equal(found, by_cv2(content))
    assert found.shape == ((31, 20, 3) if 5 <= orientation <= 8 else (20, 31, 3))


def test_orientation_is_applied_to_16_bits(read):
    gray = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    found = read(encoded(PIL.Image.fromarray(gray), "PNG", exif=exif))
    assert np.array_equal(found[..., 0], np.rot90(gray >> 8, -1))


def test_damaged_exif_data_harm_nothing(read):
    content = encoded(random_image(20, 31), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.array_equal(read(content), by_cv2(content))


def test_the_orientation_is_exifs_not_that_of_other_metadata(read):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = encoded(random_image(20, 31), "JPEG", xmp=xmp)
    assert np.array_equal(read(content), by_cv2(content))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA"])
def test_palettes_and_alpha_are_cv2s(mode, read):
    """An alpha channel is dropped, whatever it hides."""
    image = PIL.Image.fromarray(random_image(61, 97))
    alpha = PIL.Image.fromarray(random_image(61, 97, seed=1)[..., 0])
    if mode == "RGBA":
        image.putalpha(alpha)
    elif mode == "LA":
        image = PIL.Image.merge("LA", [image.convert("L"), alpha])
    elif mode == "PA":
        image = image.quantize(50)
        image.info["transparency"] = bytes(range(50))
    else:
        image = image.quantize(50) if mode == "P" else image.convert(mode)
    content = encoded(image, "PNG")
    assert np.array_equal(read(content), by_cv2(content))


def test_cmyk_is_converted(read):
    rgb = random_image(61, 97)
    for kind in ("JPEG", "TIFF"):
        found = read(encoded(PIL.Image.fromarray(rgb).convert("CMYK"), kind))
        difference = np.abs(found.astype(int) - rgb[..., ::-1])
        assert difference.mean() < (8 if kind == "JPEG" else 1)


@pytest.mark.parametrize(
    "name", ["gray.png", "color.png", "alpha.png", "gray.tiff", "color.tiff", "gray.pgm"]
)
def test_of_16_bits_the_highest_8_are_kept(name, read):
    values = random_image(61, 97).astype(np.uint16) * 256 + random_image(61, 97, seed=1)
    values = values[..., 0] if name.startswith("gray") else values
    if name.startswith("alpha"):
        values = np.dstack([values, values[..., :1]])
    content = cv2.imencode(os.path.splitext(name)[1], values)[1].tobytes()
    found = read(content, name)
    # Pillow scales a PGM by its largest value, to within one
    expected = values[..., None] if values.ndim == 2 else values[..., :3]
    assert np.abs(found.astype(int) - (expected >> 8)).max() <= (1 if name.endswith("pgm") else 0)
    if name.endswith("png"):
        assert np.array_equal(found, by_cv2(content))


@pytest.mark.parametrize("name", ["gray.png", "color.png", "gray.tiff", "color.tiff", "gray.pgm"])
def test_12_bits_in_16_are_refused_instead_of_black(name, read):
    values = random_image(61, 97).astype(np.uint16) * 16
    values = values[..., 0] if name.startswith("gray") else values
    content = cv2.imencode(os.path.splitext(name)[1], values)[1].tobytes()
    with pytest.raises(ImageError, match=r"1/16 of the range of its 16 bits.*scale its values up"):
        read(content, name)


def tiff(pixels, width, height, bits, sample_format=1):
    """A gray TIFF of one uncompressed strip."""
    fields = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    fields += [(279, len(pixels)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(fields))
        + entries
        + bytes(4)
    )


def test_a_tiff_of_12_bits_keeps_its_highest_8(read):
    values = np.arange(0, 4096, 64).reshape(8, 8)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    found = read(tiff(packed.astype(np.uint8).tobytes(), 8, 8, 12))
    assert np.array_equal(found[..., 0], values >> 4) and np.array_equal(found[..., 0], found[..., 2])


def test_a_tiff_of_floats_is_0_to_1_or_refused(read):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    found = read(tiff(values.tobytes(), 4, 3, 32, sample_format=3))
    assert np.array_equal(found[..., 1], np.rint(values * 255))
    for wrong in (values * 255, values - 0.5, np.where(values > 0.5, np.nan, values)):
        with pytest.raises(ImageError, match="floats that are not all within 0 to 1"):
            read(tiff(wrong.astype(np.float32).tobytes(), 4, 3, 32, sample_format=3))


@pytest.mark.parametrize("sample_format", [1, 2])
def test_a_tiff_of_32_bit_integers_is_refused(sample_format, read):
    with pytest.raises(ImageError, match="32 bits"):
        read(tiff(np.arange(12, dtype=np.int32).tobytes(), 4, 3, 32, sample_format))


def test_of_several_frames_the_first_is_taken(read):
    first, second = (PIL.Image.fromarray(random_image(20, 30, seed)) for seed in (0, 1))
    for kind in ("GIF", "TIFF", "PNG"):
        alone = read(encoded(first, kind))
        assert np.array_equal(read(encoded(first, kind, save_all=True, append_images=[second])), alone)


@pytest.mark.stress
@pytest.mark.parametrize(("kind", "options"), [*JPEG[::3], *SIMPLE, *OPTIONAL])
def test_a_file_cut_short_is_refused(kind, options, read, stress, record_property):
    """At every length; only what comes behind the pixels may be missing."""
    content = encoded(random_image(40, 60), kind, **options)
    whole = read(content)
    size = len(content)
    lengths = range(size) if stress else [*range(0, size - 3, 97), *range(size - 3, size)]
    complete = 0
    for length in lengths:
        try:
            found = read(content[:length])
        except ImageError:
            continue
        assert np.array_equal(found, whole), length
        assert length > 0.9 * size
        complete += 1
    assert complete < 5  # a PNG's last four bytes are a sum over nothing
    record_property("tried", f"{len(lengths)} lengths of a {kind} file cut short")


@pytest.mark.stress
def test_a_changed_png_is_refused(read, stress, record_property):
    """Its chunks carry sums; decoders that stop at the last pixel miss those at the end."""
    content = encoded(random_image(40, 60), "PNG")
    whole = read(content)
    size = len(content)
    positions = range(size) if stress else [*range(0, size, 53), *range(size - 60, size)]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        try:
            assert np.array_equal(read(bytes(changed)), whole), position
        except ImageError:
            pass
    record_property("tried", f"{len(positions)} PNG files with one bit changed")


def test_a_huge_header_is_refused_before_anything_is_allocated(read):
    """60,000 x 60,000 pixels would take 10.8 GB."""
    with pytest.raises(ImageError, match=r"more than 178956970 pixels.*3600000000"):
        read(huge_png())


def test_the_limit_holds_where_pillows_is_lifted(read, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("frcnn.read_image.MAX_PIXELS", 599)
    with pytest.raises(ImageError, match="20x30 are more than 599 pixels"):
        read(encoded(random_image(30, 20), "PNG"))


def test_what_is_no_image_is_named(read, tmp_path):
    with pytest.raises(ImageError, match="the file is empty"):
        read(b"")
    with pytest.raises(ImageError, match=r"page\.jpg is not an image that can be decoded.*JPEG, PNG"):
        read(b"<html>not found</html>", "page.jpg")
    with pytest.raises(ImageError, match="is not a file"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such image: .*absent"):
        read_image(tmp_path / "absent.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg is not a file"):
        read_image(tmp_path / "pipe.jpg")


def test_formats_that_start_programs_are_not_opened(read):
    with pytest.raises(ImageError, match="not an image that can be decoded"):
        read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "page.eps")


@pytest.mark.stress
def test_garbage_is_an_image_error(read, stress, record_property):
    rng = np.random.default_rng(0)
    sources = [encoded(random_image(24, 24), p.values[0], **p.values[1]) for p in [*JPEG[::5], *SIMPLE]]
    count = 20_000 if stress else 300
    for number in range(count):
        content = bytearray(sources[number % len(sources)])
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        try:
            assert read(bytes(content)).dtype == np.uint8
        except ImageError:
            pass
    record_property("tried", f"{count:,} mutations of image files")
