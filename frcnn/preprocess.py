"""From a picture to the network's input: read, resize, normalise, pad.

Every step reproduces MMDetection's pixel for pixel: cv2 decoding (BGR, EXIF orientation applied), cv2
bilinear resize that keeps the aspect, (pixel - mean) / std in float32, zero padding right and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.config import DataConfig


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and says why."""


def read_image(path: str | Path) -> np.ndarray:
    """Decode a picture to HWC uint8 BGR, turned upright by its EXIF orientation.

    Raises FileNotFoundError if there is no such file and ImageError if it is not a readable picture.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such image: {path}")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(
            f"{path} is not a picture that OpenCV can decode (truncated, empty or another format)"
        )
    return image


def as_bgr(image: str | Path | np.ndarray | Tensor) -> np.ndarray:
    """A picture given as a path, an HWC uint8 BGR array, or a uint8 BGR tensor (HWC or CHW), as HWC uint8."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Tensor):
        if image.ndim == 3 and image.shape[-1] != 3 and image.shape[0] == 3:
            image = image.permute(1, 2, 0)
        image = image.cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a path, a numpy array or a tensor, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image array must be uint8 of shape (height, width, 3) in BGR order, got {image.dtype} "
            f"of shape {tuple(image.shape)}"
        )
    return image


def fit_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled to fit `size`: its larger number bounds the long side, its smaller the short."""
    scale = min(max(size) / max(height, width), min(size) / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Resize an HWC uint8 picture to fit `size`; returns it with its (x, y) scale factors."""
    height, width = image.shape[:2]
    new_height, new_width = fit_size(height, width, size)
    if min(new_height, new_width) < 1:
        raise ValueError(f"an image of {width}x{height} pixels vanishes when it is made to fit {size}")
    if (new_height, new_width) != (height, width):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    return image, (new_width / width, new_height / height)


def normalise(image: np.ndarray | Tensor, data: DataConfig) -> Tensor:
    """HWC uint8 BGR -> [3, H, W] float32 in the channel order, mean and scale that the network expects.

    The result is a channels-last view: its memory stays HWC, as the convolutions want it.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if data.rgb:
        pixels = pixels.flip(-1)
    mean = torch.tensor(data.mean, device=pixels.device)
    std = torch.tensor(data.std, device=pixels.device)
    return ((pixels.float() - mean) / std).permute(2, 0, 1)


def pad(images: Sequence[Tensor], divisor: int) -> Tensor:
    """Stack [3, H, W] tensors, zero-padded to the largest of them and to a multiple of divisor."""
    height = -(-max(image.shape[1] for image in images) // divisor) * divisor
    width = -(-max(image.shape[2] for image in images) // divisor) * divisor
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return torch.stack(padded).contiguous(memory_format=torch.channels_last)
