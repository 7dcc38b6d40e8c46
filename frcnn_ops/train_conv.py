"""The convolutions of training in float32 on a CPU: matrix products and Winograd's algorithm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .winograd_conv import winograd_available, winograd_conv, winograd_fits, winograd_weight

FEWEST_CELLS = 2048  # with fewer, transforming the weights costs more than the multiplications saved


def train_conv_fits(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Whether :func:`train_conv` computes x [B, C, H, W] convolved with a weight [K, C / groups, h, w].

    It does in float32 on a CPU, where it is faster than torch's: 1x1 of any stride, and 3x3 with stride and
    padding 1 whose K and C are multiples of 32, of :data:`FEWEST_CELLS` or more, where
    :func:`winograd_available`.
    """
    filters, channels, *size = weight.shape
    if groups != 1 or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, weight)):
        return False
    if size == [1, 1]:
        return padding == 0
    if size != [3, 3] or not stride == padding == 1 or x.shape[0] * x.shape[2] * x.shape[3] < FEWEST_CELLS:
        return False
    return winograd_fits(channels, filters) and winograd_fits(filters, channels) and winograd_available()


@torch.library.custom_op(
    "frcnn::train_conv",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int stride) -> Tensor",
)
def train_conv(x, weight, bias, stride):
    """A convolution that :func:`train_conv_fits`, differentiable once.

    3x3 convolutions are `winograd_conv` forward and in the gradient of x, which is the convolution of `grad`
    with the mirrored filters; the gradient of the weight is nine matrix products, one per tap. 1x1 ones are
    torch's forward and matrix products in both gradients. Rounding errors are those of `winograd_conv`, 3e-6
    of the largest result.

    Args:
        x: [B, C, H, W] float32 on the CPU, best channels-last.
        weight: [K, C, 1, 1] or [K, C, 3, 3], not transformed.
        bias: [K] or None.
        stride: of a 1x1 convolution; 1 for 3x3.

    Returns:
        [B, K, H', W'] float32, channels-last.
    """
    if weight.shape[2] == 3:
        return winograd_conv(x, winograd_weight(weight), bias)
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, stride)


@train_conv.register_fake
def _(x, weight, bias, stride):
    size = [(side - 1) // stride + 1 for side in x.shape[2:]]
    return x.new_empty(len(x), len(weight), *size).contiguous(memory_format=torch.channels_last)


def keep(ctx, inputs, output):
    x, weight, _, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, _ = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = grad_weight = None
    if weight.shape[2] == 3:
        if of_x:
            grad_x = winograd_conv(grad, winograd_weight(weight.transpose(0, 1).flip(2, 3)))
        if of_weight:
            grad_weight = taps(x, grad)
    else:
        rows = rows_of(grad)
        if of_weight:
            grad_weight = (rows.T @ rows_of(every(ctx.stride, x))).view_as(weight)
        if of_x:
            grad_x = maps_of(rows @ weight.flatten(1), grad)
            if ctx.stride > 1:
                cells = grad_x
                grad_x = torch.zeros_like(x, memory_format=torch.channels_last)
                every(ctx.stride, grad_x).copy_(cells)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if of_bias else None, None


train_conv.register_autograd(backward, setup_context=keep)


def taps(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a 3x3 weight: for each tap, the sum over cells of grad times the x that the tap meets.

    With a border of zeros, and rows of the same length in both, the cells that a tap meets are the cells of
    grad moved by a constant, also from row to row: so the sum is one matrix product over memory as it lies.
    One image at a time, as the bordered copies are as large as the maps.
    """
    (batch, channels, height, width), filters = x.shape, grad.shape[1]
    out = x.new_zeros(9, filters, channels)
    cells = height * (width + 2)
    for image in range(batch):
        # a row of zeros and one cell more, as the last tap of the last cell reads beyond the border
        bordered = F.pad(x[image].permute(1, 2, 0), (0, 0, 1, 1, 1, 2)).flatten(0, 1)
        spread = F.pad(grad[image].permute(1, 2, 0), (0, 0, 0, 2)).flatten(0, 1).T
        for tap in range(9):
            first = tap // 3 * (width + 2) + tap % 3
            out[tap].addmm_(spread, bordered[first : first + cells])
    return out.view(3, 3, filters, channels).permute(2, 3, 0, 1)


def every(stride: int, x: Tensor) -> Tensor:
    """The cells of x that a 1x1 convolution with this stride reads."""
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def rows_of(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C], without a copy where it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """[B * H * W, K] -> [B, K, H, W], with B, H and W as in `like`."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)
