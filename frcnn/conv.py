"""The leaves of the network: a convolution or linear layer, called with what follows it.

What follows is said by the caller: `conv(x, norm, add=shortcut, relu=True)`. So a forward pass is written
once, and `frcnn.inference.fold` makes the fast form of the same network by swapping these leaves alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Conv2d):
    """relu(norm(convolution) + add), the parts that are asked for; the parameters are nn.Conv2d's.

    A norm in evaluation mode is an affine map per channel, so it is folded into the weight as the layer runs:
    with s = gamma / sqrt(variance + eps), norm(conv(x, W)) = conv(x, s W) + (beta - s mean). gamma and beta
    learn as before, and nothing between the convolution and the norm has to be kept for the backward pass.
    """

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
        add: [B, K, H', W']; a folded network overwrites it with the result.
        beside: a layer of the same geometry over the same x, whose channels follow this one's in the result.
        """
        weight, bias = self.weight, self.bias
        if beside is not None:
            weight, bias = torch.cat([weight, beside.weight]), torch.cat([bias, beside.bias])
        folded = norm is not None and not norm.training
        if folded:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            weight, bias = weight * scale[:, None, None, None], shift
        x = self._conv_forward(x, weight, bias)
        if norm is not None and not folded:
            x = norm(x)
        if add is not None:
            x = x.add_(add) if folded or norm is None else x + add
        return F.relu(x, inplace=True) if relu else x


class Linear(nn.Linear):
    """A linear layer and a ReLU where asked for; the parameters are nn.Linear's."""

    def forward(self, x: Tensor, *, relu: bool = False, beside: nn.Linear | None = None) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M]; `beside` as in `Conv`."""
        weight, bias = self.weight, self.bias
        if beside is not None:
            weight, bias = torch.cat([weight, beside.weight]), torch.cat([bias, beside.bias])
        x = F.linear(x.flatten(1), weight, bias)
        return F.relu(x, inplace=True) if relu else x
