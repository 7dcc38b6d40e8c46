"""Images and maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check


def normalize_images(images, sizes, mean, std, rgb, dtype) -> Tensor:
    check("normalization", mean, std, rgb)
    pixels = (images.flip(-1) if rgb else images).float()
    pixels = (pixels - pixels.new_tensor(mean)) / pixels.new_tensor(std)
    rows = torch.arange(images.shape[1], device=images.device) < sizes[:, :1]
    columns = torch.arange(images.shape[2], device=images.device) < sizes[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return pixels.where(inside, 0.0).permute(0, 3, 1, 2).to(dtype)


def resize_images(images, sizes, height, width) -> Tensor:
    check("resize", sizes, len(images), height, width)
    out = images[0].new_zeros(len(images), height, width, 3)
    for image, place, h, w in zip(images, out, sizes[::2], sizes[1::2], strict=True):
        if h * w:
            place[:h, :w] = _resized(image, h, w)
    return out


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    old_height, old_width, _ = image.shape
    if (old_height, old_width) == (height, width):
        return image
    if (old_height, old_width) == (2 * height, 2 * width):
        return (image.int().reshape(height, 2, width, 2, 3).sum((1, 3)) + 2) >> 2
    left, right, left_weight, right_weight = _taps(old_width, width, True)
    top, bottom, top_weight, bottom_weight = (tap[:, None, None] for tap in _taps(old_height, height, False))
    pixels = image.cpu().int()
    rows = pixels[:, left] * left_weight[:, None] + pixels[:, right] * right_weight[:, None]
    rows = rows >> 4
    high = top_weight * rows[top[:, 0, 0]] >> 16
    low = bottom_weight * rows[bottom[:, 0, 0]] >> 16
    return (high + low + 2) >> 2


def _taps(old: int, new: int, along_row: bool) -> tuple[Tensor, ...]:
    """Of every pixel along an axis: the two that it is made of, and their weights in 1/2048."""
    part = ((torch.arange(new, dtype=torch.float64) + 0.5) * (1 / (new / old)) - 0.5).float()
    first = part.floor()
    part = part - first
    if along_row:
        part = part.where((first >= 0) & (first < old - 1), 0.0)
    places = (place.long().clamp(0, old - 1) for place in (first, first + 1))
    return *places, *((weight * 2048).round().int() for weight in (1 - part, part))


def conv_epilogue(x, bias, add, relu) -> Tensor:
    total = x.float() + bias.float()[:, None, None]
    if add is not None and total.numel():
        total = total + F.interpolate(add.float(), x.shape[2:], mode="nearest")
    return (total.relu() if relu else total).to(x.dtype)


def relu_bias_gradient(grad, out) -> tuple[Tensor, Tensor]:
    masked = grad.where(~(out <= 0), 0)
    wide = torch.promote_types(grad.dtype, torch.float32)
    return masked, masked.to(wide).sum((0, 2, 3)).to(grad.dtype)


def relu_bias_gradient_(grad, out) -> Tensor:
    masked, by_bias = relu_bias_gradient(grad, out)
    grad.copy_(masked)
    return by_bias
