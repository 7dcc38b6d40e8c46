"""From pixels to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check


def normalize_images(
    images: Tensor, sizes: Tensor, mean: Sequence[float], std: Sequence[float], rgb: bool, dtype: torch.dtype
) -> Tensor:
    """(pixel - mean) / std in float32, rounded to ``dtype``; 0 in the padding.

    Args:
        images: uint8 [B, H, W, C], each image at the top left; three channels are BGR.
        sizes: float32 [B, 2], (height, width) of each image, beyond which lies padding.
        mean, std: C numbers each, 1 to 32, in the order of the result's channels; std is positive.
        rgb: the result's three channels are RGB; otherwise they are as they come.
        dtype: float32, float16 or bfloat16.

    Returns:
        [B, C, H, W] of ``dtype``, channels-last. Not differentiable.

    Raises:
        RuntimeError: for other shapes, dtypes, devices or numbers.
    """
    return torch.ops.frcnn_ops.normalize_images(images, sizes, mean, std, rgb, dtype)


@torch.library.register_fake("frcnn_ops::normalize_images")
def _(images, sizes, mean, std, rgb, dtype):
    check("normalization", mean, std, rgb)
    batch, height, width, _ = images.shape
    return torch.empty(
        (batch, len(mean), height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
