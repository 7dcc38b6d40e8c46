"""What follows a convolution, in one pass over its result."""

from __future__ import annotations

import torch
from torch import Tensor


def conv_epilogue(x: Tensor, bias: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
    """relu(x + bias + add), the parts that are asked for, computed in float32 and rounded once.

    Args:
        x: [B, K, H, W] float32, float16 or bfloat16, best channels-last.
        bias: [K] of the same dtype.
        add: [B, K, h, w] of the same dtype, best channels-last, or None. Where it is of another size, the
            nearest cell is added, as torch's interpolation with mode="nearest" finds it.

    Returns:
        [B, K, H, W], channels-last. Not differentiable: it is for inference.

    Raises:
        RuntimeError: for other shapes, dtypes or devices.
    """
    return torch.ops.frcnn_ops.conv_epilogue(x, bias, add, relu)


@torch.library.register_fake("frcnn_ops::conv_epilogue")
def _(x, bias, add, relu):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
