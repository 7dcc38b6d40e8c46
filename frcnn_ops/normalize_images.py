"""From pixels to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .extension import _C


def normalize_images(
    images: Tensor, sizes: Tensor, mean: Sequence[float], std: Sequence[float], rgb: bool, dtype: torch.dtype
) -> Tensor:
    """(pixel - mean) / std in float32, rounded to ``dtype``; 0 in the padding.

    Args:
        images: uint8 [B, H, W, 3], BGR, each image at the top left.
        sizes: float32 [B, 2], (height, width) of each image, beyond which lies padding.
        mean, std: three numbers each, in the order of the result's channels; std is positive.
        rgb: the result's channels are RGB; otherwise BGR, as they come.
        dtype: float32, float16 or bfloat16.

    Returns:
        [B, 3, H, W] of ``dtype``, channels-last. Not differentiable.

    Raises:
        RuntimeError: for other shapes, dtypes, devices or numbers.
    """
    return torch.ops.frcnn_ops.normalize_images(images, sizes, mean, std, rgb, dtype)


@torch.library.register_fake("frcnn_ops::normalize_images")
def _(images, sizes, mean, std, rgb, dtype):
    _C.check_normalization(mean, std)
    batch, height, width, _ = images.shape
    return torch.empty(
        (batch, 3, height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
