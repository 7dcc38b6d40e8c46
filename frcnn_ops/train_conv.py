"""Convolutions of training in float32 on a CPU, and their gradients, each computed the fastest way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .winograd_conv import (
    winograd_available,
    winograd_conv,
    winograd_fits,
    winograd_weight,
    winograd_weight_gradient,
)

FEWEST_CELLS = 1000  # of an image: with fewer, transforming the weights costs more than it saves


def train_conv_fits(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Whether :func:`train_conv` computes x [B, C, H, W] convolved with a weight [K, C / groups, h, w].

    It does in float32 on a CPU, for 3x3 with padding 1 and 1x1 with padding 0 and stride 1, in one group:
    where its gradients are faster than torch's in channels-last. Under autocast another type is computed in.
    """
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, weight)):
        return False
    if groups != 1 or torch.is_autocast_enabled("cpu"):
        return False
    size = tuple(weight.shape[2:])
    return (size == (3, 3) and padding == 1) or (size == (1, 1) and padding == 0 and stride == 1)


def train_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution that :func:`train_conv_fits`, differentiable once.

    3x3 with stride 1 is Winograd's algorithm, in the result, in the gradient of x (the convolution of the
    result's with the mirrored filters) and in that of the weight, where :func:`winograd_available`, C and K
    are multiples of 32 and a map has :data:`FEWEST_CELLS`. Other gradients of weights are a matrix product
    for each of the filters' taps, and that of a 1x1 convolution's x is one too. What is left is torch's.
    Rounding errors are at most those of :func:`winograd_conv`, 3e-6 of the largest result.

    Args:
        x: [B, C, H, W] float32 on the CPU, best channels-last.
        weight: [K, C, 3, 3] or [K, C, 1, 1] float32, not transformed.
        bias: [K] float32 or None.
        stride: of both directions.

    Returns:
        [B, K, H', W'] float32, channels-last.

    Source: Lavin and Gray 2015 (Fast Algorithms for Convolutional Neural Networks), section 4.1.
    """
    return _TrainConv.apply(x, weight, bias, stride)


class _TrainConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        if _by_winograd(x, weight, stride):
            return winograd_conv(x, winograd_weight(weight), bias)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        by_winograd = _by_winograd(x, weight, ctx.stride)
        by_x = by_weight = None
        if of_x and by_winograd:
            by_x = winograd_conv(grad, winograd_weight(weight.transpose(0, 1).flip(2, 3)))
        elif of_x and weight.shape[2] == 1:
            rows = _rows(grad) @ weight.flatten(1)
            by_x = rows.view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        elif of_x:
            by_x = _torch_gradient_of_x(grad, x, weight, ctx.stride)
        if of_weight and by_winograd:
            by_weight = winograd_weight_gradient(x, grad)
        elif of_weight:
            by_weight = _sum_of_taps(x, grad, weight, ctx.stride)
        return by_x, by_weight, grad.sum((0, 2, 3)) if of_bias else None, None


def _by_winograd(x: Tensor, weight: Tensor, stride: int) -> bool:
    filters, channels, height, _ = weight.shape
    if height != 3 or stride != 1 or x.shape[2] * x.shape[3] < FEWEST_CELLS or not winograd_available():
        return False
    return winograd_fits(channels, filters) and winograd_fits(filters, channels)


def _torch_gradient_of_x(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    strides, borders = [stride, stride], [weight.shape[2] // 2] * 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, borders, [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]


def _sum_of_taps(x: Tensor, grad: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of the weight: for each tap, the sum over cells of grad times the x that the tap meets.

    oneDNN's own, in channels-last, is two to seven times slower than its other convolutions.
    """
    filters, channels, size, _ = weight.shape
    height, width = grad.shape[2:]
    border = size // 2
    bordered = F.pad(x.permute(0, 2, 3, 1), (0, 0) + (border,) * 4) if border else x.permute(0, 2, 3, 1)
    by_weight, rows = weight.new_empty(size, size, filters, channels), _rows(grad).T
    for i in range(size):
        for j in range(size):
            met = bordered[:, i : i + stride * height : stride, j : j + stride * width : stride]
            torch.mm(rows, met.reshape(-1, channels), out=by_weight[i, j])
    return by_weight.permute(2, 3, 0, 1)


def _rows(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C], without a copy where it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
