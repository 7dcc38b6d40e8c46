"""From a file or URL to pixels: HWC uint8, BGR where there are three channels.

Pillow decodes: 8-bit images come out bit for bit as from cv2.imread, with which the reference reads, but a
file that is cut short is refused. What is not 8-bit BGR becomes so by these rules, the same for files, arrays
and Pillow's images:

- gray is repeated in three channels; palettes, YCbCr and CMYK are converted by Pillow, without color
  profiles; an alpha channel is dropped; of several frames or pages the first is taken;
- deeper integers keep their highest 8 bits, as with cv2.imread of a PNG; where almost nothing is left (12-bit
  values in a 16-bit file, say) the image is refused instead of being black;
- floats are 0 to 1 and become 0 to 255, rounded; anything else is refused.

Images of other channels (near infrared, depth) are arrays [height, width, channels] and `.npy` files of such.
These rules hold for their numbers; nothing is done to their channels.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np
import PIL.Image
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
"""The formats that are read. Pillow knows more, but opens some of them with other programs."""

MAX_PIXELS = 178_956_970
"""An image whose header says more is not decoded; this many (Pillow's own limit) take 512 MiB as BGR."""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")

URL_BYTES = 256 << 20
URL_SECONDS = 60.0
"""Limits for an image from the network."""

ARRAY_TYPES = ("uint8", "uint16", "float16", "float32", "float64")

MAX_CHANNELS = 32

MIN_DEEP_VALUE = 16
"""A deep image is refused unless its 8-bit form somewhere reaches this: 1/16 of its range."""

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""
TURNED = (5, 6, 7, 8)
"""Those of images whose height is stored as width."""


class ImageError(ValueError):
    """An image that cannot be used; the message names the file, where there is one, and says why."""


def is_url(path: str | Path) -> bool:
    """Whether `read_image` asks the network for it: a text that begins with http:// or https://."""
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def is_image_address(path: str | Path) -> bool:
    """Whether it is a URL of a file that is named as images are; others may be of videos."""
    return is_url(path) and Path(urlsplit(str(path)).path).suffix.lower() in image_suffixes()


def read_image(path: str | Path, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image file, or a URL (http, https), to HWC uint8 BGR, turned upright by its EXIF orientation;
    of a `.npy` file all channels, as they lie.

    at_least: (height, width) that suffice: of a JPEG file libjpeg then decodes no more than a half, a quarter
    or an eighth of each side, rounded up, if that is as large.

    The rules of this module apply. A file cut short is refused (unless Pillow's LOAD_TRUNCATED_IMAGES is
    set), and so is a PNG with a wrong checksum; bytes that were changed in the middle of other formats, which
    have no checksums, can go unnoticed.

    Raises FileNotFoundError if there is no such file and ImageError, which names the file, if it is not a
    complete image of a supported kind or larger than MAX_PIXELS; the latter without decoding it. A URL has
    URL_SECONDS to deliver at most URL_BYTES.
    """
    if is_url(path):
        return _read_url(str(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such image: {path}")
    with _read_from(path):
        if not os.path.isfile(path):
            raise ImageError("is not a file")
        with open(path, "rb") as file:
            return _array_of(file) if is_array_file(path) else _decode(file, at_least)


def is_array_file(path: str | Path) -> bool:
    return str(path).lower().endswith(".npy")


def _array_header(file: BinaryIO) -> tuple[tuple[int, int, int], np.dtype]:
    """Shape [height, width, channels] and dtype; what is no image is refused before its numbers are read."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ImageError(f"is a .npy file of version {version}: save it as version 1.0 or 2.0")
    shape, _, dtype = read[version](file, max_header_size=4096)
    shape = (*shape, 1) if len(shape) == 2 else shape
    if (
        len(shape) != 3
        or not 1 <= shape[2] <= MAX_CHANNELS
        or min(shape) < 1
        or dtype.name not in ARRAY_TYPES
    ):
        raise ImageError(
            f"holds {dtype} of shape {shape}: an image is uint8, uint16 or float (0 to 1), [height, width] "
            f"or [height, width, channels], of at most {MAX_CHANNELS} channels"
        )
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ImageError(f"is not read: {shape[1]}x{shape[0]} are more than {MAX_PIXELS} pixels")
    return shape, dtype


def _array_of(file: BinaryIO) -> np.ndarray:
    shape, dtype = _array_header(file)
    if os.fstat(file.fileno()).st_size - file.tell() < math.prod(shape) * dtype.itemsize:
        raise ImageError("is cut short")
    file.seek(0)
    return np.require(in_bytes(np.load(file, allow_pickle=False).reshape(shape)), requirements=["C", "W"])


def read_bytes(content: bytes, name: str) -> np.ndarray:
    """What `read_image` makes of a file of this content. Raises ImageError, with the name."""
    with _read_from(name):
        return _decode(io.BytesIO(content))


def _read_url(address: str) -> np.ndarray:
    from frcnn.checkpoint.transfer import BrokenTransfer, DownloadError, fetch

    with _read_from(address):
        try:
            content = fetch(address, URL_BYTES, URL_SECONDS)
        except (BrokenTransfer, DownloadError) as error:
            raise ImageError(f"could not be downloaded: {error}") from None
        return _decode(io.BytesIO(content))


@contextlib.contextmanager
def _read_from(name: str | Path) -> Iterator[None]:
    """Errors of the block are ImageErrors that begin with the name."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None
    except Exception as error:
        # whatever a decoder raises at damaged data: OSError, SyntaxError, struct.error, MemoryError, …
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name} cannot be read; it may be damaged or cut short ({reason})") from error


class Header(NamedTuple):
    """What a file says of its image: the size of what `read_image` returns, Pillow's mode ("npy": an
    array's), bits per channel and EXIF orientation (1: upright)."""

    width: int
    height: int
    mode: str
    bits: int
    orientation: int


def read_header(path: str | Path) -> Header:
    """Without decoding the image. Raises ImageError."""
    with _read_from(path), open(path, "rb") as file:
        if is_array_file(path):
            (height, width, _), dtype = _array_header(file)
            return Header(width, height, "npy", 8 * dtype.itemsize, 1)
        image = _opened(file)
        orientation = _orientation(image)
        width, height = (image.height, image.width) if orientation in TURNED else (image.width, image.height)
        return Header(width, height, image.mode, _bits(image), orientation)


def _opened(file: BinaryIO) -> PIL.Image.Image:
    """Not decoded yet; one that may not be is refused."""
    try:
        image = PIL.Image.open(file, formats=FORMATS)
    except PIL.UnidentifiedImageError:
        empty = file.seek(0, os.SEEK_END) == 0
        reason = "the file is empty" if empty else f"supported are {', '.join(FORMATS)}"
        raise ImageError(f"is not an image that can be decoded ({reason})") from None
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"is not decoded: more than {MAX_PIXELS} pixels ({error})") from None
    if image.width * image.height > MAX_PIXELS:  # Pillow's limit may have been lifted
        raise ImageError(f"is not decoded: {image.width}x{image.height} are more than {MAX_PIXELS} pixels")
    return image


def _orientation(image: PIL.Image.Image) -> int:
    """By its EXIF data, which in a PNG may come behind the pixels; 1 where there are none."""
    exif = PIL.Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF data harm no pixel
        exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION_TAG, 1)


def _decode(file: BinaryIO, at_least: tuple[int, int] | None = None) -> np.ndarray:
    image = _opened(file)
    if at_least is not None and isinstance(image, JpegImageFile):
        turned = _orientation(image) in TURNED
        image.draft(None, at_least if turned else at_least[::-1])
    if image.format == "PNG":
        image.verify()  # the checksums; decoding alone does not look at all of them
        image = PIL.Image.open(file, formats=FORMATS)
    elif image.format == "JPEG2000":
        _check_end_of_codestream(file)
    bits = _bits(image)
    image.load()
    if (turn := UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    return _pixels(image, bits)


def _check_end_of_codestream(file: BinaryIO) -> None:
    """Its decoder takes a file that ends between two parts for a whole one; only metadata may follow."""
    position = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
    if b"\xff\xd9" not in file.read():
        raise ImageError("is cut short: the JPEG 2000 code stream does not end")
    file.seek(position)


def _bits(image: PIL.Image.Image) -> int:
    """Bits per channel of an image that is opened but not loaded yet, where they are more than 8."""
    if isinstance(image, TiffImageFile):
        return max(8, *image.tag_v2.get(258, (8,)))  # BitsPerSample
    if image.mode.startswith("I"):
        return 16
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return 16 if any(isinstance(raw, str) and "16" in raw for raw in arguments) else 8


def from_pillow(image: PIL.Image.Image) -> np.ndarray:
    """HWC uint8 BGR of Pillow's image, perhaps of a file that it has opened, but not decoded yet."""
    with _read_from("the Pillow image"):
        bits = _bits(image)
        image.load()
        return _pixels(image, bits)


def _pixels(image: PIL.Image.Image, bits: int) -> np.ndarray:
    """HWC uint8 BGR of a loaded image, whose channels had `bits` bits."""
    if image.mode == "F":
        return from_array(np.asarray(image))
    if image.mode.startswith("I"):
        if bits > 16:
            raise ImageError(f"has pixels of {bits} bits, which have no stated range: convert it to 16 bits")
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError("has integers that are not within 0 to 65535: convert it to 16 bits")
        return from_array(values.astype(np.uint16), bits)
    if image.mode == "P":
        image = image.convert("RGBA")  # without the detour a transparent palette warns
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
    return _not_black(pixels, bits) if bits > 8 else pixels


def from_array(array: np.ndarray, bits: int = 16, rgb: bool = False) -> np.ndarray:
    """HWC uint8 BGR of an array [height, width] or [height, width, 1, 3 or 4] of one of the three kinds."""
    array = in_bytes(array, bits)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    array = array[..., 2::-1] if rgb else array[..., :3]
    # cv2 and torch take neither reversed nor, without a warning, read-only memory
    return np.require(array, requirements=["C", "W"])


def in_bytes(array: np.ndarray, bits: int = 16) -> np.ndarray:
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("has floats that are not all within 0 to 1: scale them, or convert to uint8")
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if array.dtype.itemsize == 2:
        return _not_black((array >> (bits - 8)).astype(np.uint8), bits)
    return array


def _not_black(pixels: np.ndarray, bits: int) -> np.ndarray:
    if pixels.max() < MIN_DEEP_VALUE:
        raise ImageError(
            f"uses less than 1/16 of the range of its {bits} bits and would be black: scale its values up"
        )
    return pixels


def image_suffixes(channels: int | None = 3) -> frozenset[str]:
    """The suffixes, in lower case, of the files that are looked for in folders: of three channels those that
    are decoded, of others `.npy`; None: of any."""
    known = PIL.Image.registered_extensions().items()
    decoded = frozenset(suffix for suffix, kind in known if kind in (*FORMATS, "MPO"))
    arrays = frozenset({".npy"})
    return decoded | arrays if channels is None else decoded if channels == 3 else arrays
