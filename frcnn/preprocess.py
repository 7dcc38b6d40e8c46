"""From pixels to the network's input: resize, normalize, pad.

Every step reproduces MMDetection's pixel for pixel: cv2 bilinear resize that keeps the aspect ratio,
(pixel - mean) / std in float32, zero padding right and below. `frcnn.read_image` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.as_pixels import Image, as_pixels
from frcnn.checked import OptionError
from frcnn.config import DataConfig
from frcnn.read_image import ImageError


class Prepared(NamedTuple):
    """An image on its way to the network."""

    pixels: np.ndarray
    """HWC uint8, resized; three channels are BGR."""
    size: tuple[int, int]
    """(height, width) after resizing."""
    padded_size: tuple[int, int]
    scale: tuple[float, float]
    """(x, y) factors of the resize."""


def prepare(
    image: Image,
    data: DataConfig,
    size: tuple[int, int] | None = None,
    rgb: bool = False,
    shape: tuple[int, int] | None = None,
) -> Prepared:
    """Read an image and resize it to fit `size`, by default the recipe's. Raises as as_pixels and resize do.

    shape: (height, width) of the only input that the network takes, which the image is made to fit too.
    """
    pixels = as_pixels(image, data.channels, rgb)
    try:
        pixels, scale = resize(pixels, size or data.size, shape)
    except ImageError as error:
        raise ImageError(f"{image}: {error}" if isinstance(image, (str, Path)) else str(error)) from None
    return Prepared(pixels, pixels.shape[:2], shape or padded(pixels.shape[:2], data.pad_divisor), scale)


def check_size(size: tuple[int, int] | None) -> None:
    """Raises OptionError unless `size` is None or two positive integers."""
    valid = size is None or (len(size) == 2 and all(isinstance(side, Integral) and side > 0 for side in size))
    if not valid:
        raise OptionError(f"size={size}: it is two whole numbers above 0, the long and the short side")


def fit_size(
    height: int, width: int, size: tuple[int, int], shape: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) scaled to fit `size`: its larger number bounds the long side, its smaller the short.

    shape: (height, width) that bound the result too.
    """
    scale = min(max(size) / max(height, width), min(size) / min(height, width))
    if shape is not None:
        scale = min(scale, shape[0] / height, shape[1] / width)
    new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(new_height, new_width) < 1:
        raise ImageError(f"an image of {width}x{height} pixels vanishes when it is made to fit {size}")
    return new_height, new_width


def resize(
    image: np.ndarray, size: tuple[int, int], shape: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Resize an HWC uint8 image to fit as `fit_size` says; returns it with its (x, y) scale factors.

    Raises ImageError if it is so long and narrow that nothing would be left of it.
    """
    height, width = image.shape[:2]
    new_height, new_width = fit_size(height, width, size, shape)
    if (new_height, new_width) != (height, width):
        image = bilinear(image, new_height, new_width)
    return image, (new_width / width, new_height / height)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An HWC uint8 image of this size, as cv2 makes it, which leaves out a dimension of one channel."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)


def normalize(image: np.ndarray | Tensor, data: DataConfig) -> Tensor:
    """HWC uint8 (BGR) -> [C, H, W] float32 in the channel order, mean and scale that the network expects.

    The result is a channels-last view: its memory stays HWC, as the convolutions want it.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if data.rgb:
        pixels = pixels.flip(-1)
    mean = torch.tensor(data.mean, device=pixels.device)
    std = torch.tensor(data.std, device=pixels.device)
    return ((pixels.float() - mean) / std).permute(2, 0, 1)


def padded(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of divisor."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def pad_pixels(images: Sequence[Tensor], divisor: int) -> Tensor:
    """Stack HWC uint8 images, zero-padded to the largest of them and to a multiple of divisor: [B, H, W, C],
    which the network normalizes on its device."""
    largest = max(len(image) for image in images), max(image.shape[1] for image in images)
    return stack_pixels(images, len(images), padded(largest, divisor))


def stack_pixels(
    images: Sequence[Tensor], count: int, size: tuple[int, int], pin_memory: bool = False
) -> Tensor:
    """HWC uint8 images, each at the top left of its [H, W, C] of zeros: [count, H, W, C] for a (H, W)."""
    stacked = torch.zeros(count, *size, images[0].shape[2], dtype=torch.uint8, pin_memory=pin_memory)
    for target, image in zip(stacked, images, strict=False):
        target[: image.shape[0], : image.shape[1]] = image
    return stacked


def pad(images: Sequence[Tensor], divisor: int) -> Tensor:
    """Stack [C, H, W] tensors, zero-padded to the largest of them and to a multiple of divisor."""
    height, width = padded(
        (max(image.shape[1] for image in images), max(image.shape[2] for image in images)), divisor
    )
    stacked = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return torch.stack(stacked).contiguous(memory_format=torch.channels_last)
