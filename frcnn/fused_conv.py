"""A convolution with its bias, a sum and a ReLU in one call of cuDNN, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import frcnn_ops

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation and groups."""


def can_fuse(x: Tensor, weight: Tensor) -> bool:
    """Whether `fused_conv` takes them as they are: on a GPU, in the type that is computed in."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return x.is_cuda and x.dtype == weight.dtype == dtype and torch.backends.cudnn.enabled


def fused_conv(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, geometry: Geometry, overwrite: bool = False
) -> Tensor:
    """relu(convolution + bias + add); what is kept for the backward pass is x and the result.

    overwrite: the result's gradient may be overwritten.
    """
    return _FusedConv.apply(x, weight, bias, add, geometry, overwrite)


class _FusedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None,
        geometry: Geometry,
        overwrite: bool,
    ) -> Tensor:
        if add is None:
            out = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        else:
            out = torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *geometry)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry, ctx.overwrite = geometry, overwrite
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad, by_bias = frcnn_ops.relu_bias_gradient(grad, out, ctx.overwrite)
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
            [*ctx.needs_input_grad[:2], False],
        )  # fmt: skip
        return by_x, by_weight, by_bias, grad if ctx.needs_input_grad[3] else None, None, None
