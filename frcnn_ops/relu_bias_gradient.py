"""The gradient of a ReLU and of the bias before it, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def relu_bias_gradient(grad: Tensor, out: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """The gradients by x and by bias of ``out = relu(x + bias)``, which `out` alone decides.

    Args:
        grad: [B, K, H, W] float32, float64, float16 or bfloat16, best channels-last: the gradient by out.
        out: of the same shape and dtype, best channels-last.
        overwrite: let the gradient by x take the place of `grad`, where that is channels-last.

    Returns:
        The gradient by x [B, K, H, W], channels-last, which is `grad` where `out` is above 0 (or not a
        number) and 0 elsewhere, and the gradient by bias [K], its sum over images and cells, in float32
        (float64 for float64), rounded once. The sum does not depend on the order of threads.

    Raises:
        RuntimeError: for other shapes, dtypes or devices.
    """
    if overwrite and grad.is_contiguous(memory_format=torch.channels_last):
        return grad, torch.ops.frcnn_ops.relu_bias_gradient_(grad, out)
    return torch.ops.frcnn_ops.relu_bias_gradient(grad, out)


@torch.library.register_fake("frcnn_ops::relu_bias_gradient")
def _(grad, out):
    masked = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    return masked, grad.new_empty(grad.shape[1])


@torch.library.register_fake("frcnn_ops::relu_bias_gradient_")
def _(grad, out):
    return grad.new_empty(grad.shape[1])
