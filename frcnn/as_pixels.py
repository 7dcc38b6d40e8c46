"""One image of any kind that `predict` takes -> pixels: HWC uint8, BGR where there are three channels.

`frcnn.read_image` reads the files, and has the rules for what is not 8-bit BGR.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from torch import Tensor

from frcnn.read_image import ARRAY_TYPES, ImageError, from_array, from_pillow, in_bytes, read_image

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Image = str | Path | np.ndarray | Tensor | PIL.Image.Image
"""One image, as `predict` takes it; `as_bgr` says which arrays, tensors and files."""


def as_bgr(image: Image, rgb: bool = False) -> np.ndarray:
    """An image of any kind that `predict` takes, as HWC uint8 BGR.

    image: a path or URL; an array [height, width, 3] in BGR order, as cv2.imread gives it, or
        [height, width, 4] (BGRA) or gray [height, width] or [height, width, 1]; a tensor of these shapes or
        with the channels first; or a Pillow image of any mode, taken as it lies, without EXIF orientation.
        Arrays and tensors are uint8, uint16 or floats within 0 to 1.
    rgb: arrays and tensors are RGB or RGBA. An array cannot tell, and in the wrong order the detections are
        other ones without a word. No effect on paths and Pillow's images.

    Raises TypeError for other types, ImageError (a ValueError) for other shapes and values, and what
    `read_image` raises.
    """
    if isinstance(image, (str, Path)):
        return expect_channels(read_image(image), 3, image)
    if isinstance(image, PIL.Image.Image):
        return from_pillow(image)
    array = _array(image, (3,), (1, 4))
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    _expect(array, fits, "(height, width, 3) in BGR order, or gray, or with alpha")
    with _naming_the_array():
        return from_array(array, rgb=rgb)


def as_pixels(image: Image, channels: int, rgb: bool = False) -> np.ndarray:
    """An image as a model of so many channels takes it, HWC uint8: of three `as_bgr`, of others an array or a
    tensor [height, width, channels] or [channels, height, width], or a `.npy` file. Raises as `as_bgr` does.
    """
    if channels == 3:
        return as_bgr(image, rgb)
    if isinstance(image, (str, Path)):
        return expect_channels(read_image(image), channels, image)
    if isinstance(image, PIL.Image.Image):
        raise ImageError(f"the model takes images of {channels} channels: arrays, tensors and .npy files")
    array = _array(image, (channels,))
    array = array[..., None] if array.ndim == 2 else array
    _expect(array, array.ndim == 3 and array.shape[2] == channels, f"(height, width, {channels})")
    with _naming_the_array():
        return np.require(in_bytes(array), requirements=["C", "W"])


def _array(image: Image, *counts: tuple[int, ...]) -> np.ndarray:
    """An array as it is; a tensor's with its channels last, of the first of these `counts` that fits."""
    if isinstance(image, Tensor):
        image = _channels_last(image, *counts)
        return (image.float() if image.is_floating_point() else image).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is a path, a numpy array, a tensor or a Pillow image, not {type(image).__name__}"
        )
    return image


def _channels_last(image: Tensor, *counts: tuple[int, ...]) -> Tensor:
    for channels in counts if image.ndim == 3 else ():
        if image.shape[2] in channels:
            return image
        if image.shape[0] in channels:
            return image.permute(1, 2, 0)
    return image


def _expect(array: np.ndarray, fits: bool, shape: str) -> None:
    if not fits or array.size == 0 or array.dtype.name not in ARRAY_TYPES:
        raise ImageError(
            f"an image array is uint8, uint16 or float (0 to 1), of shape {shape}; got {array.dtype} of "
            f"shape {tuple(array.shape)}"
        )


@contextlib.contextmanager
def _naming_the_array() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ImageError(f"the image array {error}") from None


def expect_channels(pixels: np.ndarray, channels: int, name: str | Path) -> np.ndarray:
    """The pixels. Raises ImageError, which begins with the name, if they have other channels."""
    if pixels.shape[2] != channels:
        raise ImageError(
            f"{name} has {pixels.shape[2]} channels, where {channels} are expected: as many as data.mean has "
            "numbers"
        )
    return pixels


def visible(image: Image, rgb: bool = False) -> np.ndarray:
    """An image as it can be looked at, HWC uint8 BGR: `as_bgr`, and of more than three channels the first
    three, of fewer the first."""
    if isinstance(image, (str, Path)):
        image = read_image(image)
    if isinstance(image, Tensor) and image.ndim == 3 and len(image) < image.shape[2]:
        image = image.permute(1, 2, 0)
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        image = image[..., : 3 if image.shape[2] > 3 else 1]
    return as_bgr(image, rgb)


def is_one_image(images: Image | Iterable[Image]) -> TypeIs[Image]:
    """Whether `images` is one image rather than several."""
    return isinstance(images, (str, Path, np.ndarray, Tensor, PIL.Image.Image))


@contextlib.contextmanager
def naming(index: int) -> Iterator[None]:
    """Errors of the block say which image of a list they are about; those of the file system do anyway."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        kind = type(error) if type(error) in (ImageError, TypeError, ValueError) else RuntimeError
        raise kind(f"images[{index}]: {str(error) or type(error).__name__}") from error
