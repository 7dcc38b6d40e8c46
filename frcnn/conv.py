"""The leaves of the network: a convolution or linear layer, called with what follows it.

The caller says what follows: `conv(x, norm, add=shortcut, relu=True)`. So a forward pass is written
once, and `frcnn.inference.fold` makes the fast form of the same network by swapping these leaves alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops


class Conv(nn.Conv2d):
    """relu(norm(convolution) + add), the parts that are asked for; the parameters are nn.Conv2d's.

    A norm in evaluation mode is an affine map per channel, so it is folded into the weight as the layer runs:
    with s = gamma / sqrt(variance + eps), norm(conv(x, W)) = conv(x, s W) + (beta - s mean). gamma and beta
    learn as before, and nothing between the convolution and the norm has to be kept for the backward pass.
    """

    padding: tuple[int, ...]  # in numbers, never one of nn.Conv2d's words

    def forward(
        self,
        x: Tensor,
        norm: nn.BatchNorm2d | None = None,
        *,
        add: Tensor | None = None,
        relu: bool = False,
        beside: nn.Conv2d | None = None,
    ) -> Tensor:
        """[B, C, H, W] -> [B, K, H', W'].

        norm: over the K channels, for a layer without a bias of its own.
        add: [B, K, H', W']; a folded network overwrites it with the result. Or a map of another size, to a
            layer that keeps x's size: then what `resized` makes of it.
        beside: a layer of the same geometry over the same x, whose channels follow this one's in the result.
        """
        weight, bias = joined(self, beside)
        if norm is not None and not norm.training:
            scale, bias = affine(norm)
            weight, norm = weight * scale[:, None, None, None], None
        if torch.is_grad_enabled() and frcnn_ops.train_conv_fits(
            x, weight, self.stride[0], self.padding[0], self.groups
        ):
            x = frcnn_ops.train_conv(x, weight, bias, self.stride[0])
        else:
            x = self._conv_forward(x, weight, bias)
        if norm is not None:
            x = norm(x)
        if add is not None:
            add = resized(add, x)
            x = x.add_(add) if norm is None else x + add
        return F.relu(x, inplace=True) if relu else x


class Linear(nn.Linear):
    """A linear layer and a ReLU where asked for; the parameters are nn.Linear's."""

    def forward(self, x: Tensor, *, relu: bool = False, beside: nn.Linear | None = None) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M]; `beside` as in `Conv`."""
        x = F.linear(x.flatten(1), *joined(self, beside))
        return F.relu(x, inplace=True) if relu else x


def resized(add: Tensor, like: Tensor) -> Tensor:
    """A map as large as another one: at each position its nearest cell."""
    size = like.shape[-2:]
    return add if add.shape[-2:] == size else F.interpolate(add, size=size, mode="nearest")


def joined(
    layer: nn.Conv2d | nn.Linear, beside: nn.Conv2d | nn.Linear | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, followed by those of the one beside it (then both have a bias)."""
    if beside is None:
        return layer.weight, layer.bias
    assert layer.bias is not None and beside.bias is not None
    return torch.cat([layer.weight, beside.weight]), torch.cat([layer.bias, beside.bias])


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a norm in evaluation mode does, as a scale and a shift of each channel."""
    assert norm.running_mean is not None and norm.running_var is not None  # it tracks them
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
