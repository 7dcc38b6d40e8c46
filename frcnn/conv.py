"""The leaves of the network: a convolution or linear layer, called with what follows it.

The caller says what follows: `conv(x, norm, add=shortcut, relu=True)`. So a forward pass is written
once, and `frcnn.inference.fold` makes the fast form of the same network by swapping these leaves alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.fused_conv import can_fuse, fused_conv

Folded = tuple[Tensor, Tensor]
"""Weight and bias of a convolution, its norm inside."""


class Conv(nn.Conv2d):
    """relu(norm(convolution) + add), the parts that are asked for; the parameters are nn.Conv2d's.

    A norm in evaluation mode is an affine map per channel, so it is folded into the weight in every pass
    (`fold_all`): nothing between the convolution and the norm has to be kept for the backward pass.
    """

    padding: tuple[int, ...]  # in numbers, never one of nn.Conv2d's words

    def forward(
        self,
        x: Tensor,
        norm: nn.BatchNorm2d | Folded | None = None,
        *,
        add: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """[B, C, H, W] -> [B, K, H', W'].

        norm: over the K channels, for a layer without a bias of its own; or the weight and bias to take
        instead of this layer's, which `fold_all` or `for_calls` has made.
        add: [B, K, H', W']; a folded network overwrites it with the result.
        """
        weight, bias = self.weight, self.bias
        if isinstance(norm, nn.BatchNorm2d) and not norm.training:
            norm = fold_all([(self, norm)])[norm]
        if isinstance(norm, tuple):
            weight, bias = norm
            norm = None
        if relu and norm is None and bias is not None and can_fuse(x, weight):
            return fused_conv(x, weight, bias, add, (self.stride, self.padding, self.dilation, self.groups))
        x = self._conv_forward(x, weight, bias)
        if norm is not None:
            x = norm(x)
        if add is not None:
            x = x.add_(add) if norm is None else x + add
        return F.relu(x, inplace=True) if relu else x


class Linear(nn.Linear):
    """A linear layer and a ReLU where asked for; the parameters are nn.Linear's."""

    def forward(self, x: Tensor, *, relu: bool = False, beside: nn.Linear | None = None) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M].

        beside: a layer over the same x, whose numbers follow this one's in the result.
        """
        x = F.linear(x.flatten(1), *joined(self, beside))
        return F.relu(x, inplace=True) if relu else x


def joined(
    layer: nn.Conv2d | nn.Linear, beside: nn.Conv2d | nn.Linear | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, followed by those of the one beside it (then both have a bias)."""
    if beside is None:
        return layer.weight, layer.bias
    assert layer.bias is not None and beside.bias is not None
    return torch.cat([layer.weight, beside.weight]), torch.cat([layer.bias, beside.bias])


def for_calls(layer: nn.Module, beside: nn.Module | None = None) -> Folded | None:
    """Weight and bias of a convolution that is called several times, cast only once under autocast.

    beside: one of the same geometry, whose channels follow. None for another leaf, which has its own.
    """
    if not isinstance(layer, Conv):
        return None
    assert beside is None or isinstance(beside, Conv)
    weight, bias = joined(layer, beside)
    assert bias is not None
    dtype = computed_dtype(weight)
    return weight.to(dtype), bias.to(dtype)


def computed_dtype(weight: Tensor) -> torch.dtype:
    """What a layer of this weight is computed in."""
    kind = weight.device.type
    reduced = weight.dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if reduced else weight.dtype


def fold_all(layers: Sequence[tuple[Conv, nn.BatchNorm2d]]) -> dict[nn.Module | None, Folded]:
    """Each norm in evaluation mode -> what it and the convolution before it are together.

    With s = gamma / sqrt(variance + eps), norm(conv(x, W)) = conv(x, s W) + (beta - s mean). gamma and beta
    learn through it. All layers are one launch, and under autocast the results have its dtype.
    """
    layers = [(conv, norm) for conv, norm in layers if not norm.training]
    if not layers:
        return {}
    convs, norms = zip(*layers, strict=True)
    weights, biases = frcnn_ops.fold_norms(
        [conv.weight for conv in convs],
        [norm.weight for norm in norms],
        [norm.bias for norm in norms],
        [norm.running_mean for norm in norms],
        [norm.running_var for norm in norms],
        norms[0].eps,
        computed_dtype(convs[0].weight),
    )
    return dict(zip(norms, zip(weights, biases, strict=True), strict=True))
