"""The leaves of the network: a convolution or linear layer, called with what follows it.

The caller says what follows: `conv(x, norm, add=shortcut, relu=True)`. So a forward pass is written
once, and `frcnn.inference.fold` makes the fast form of the same network by swapping these leaves alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.fused_conv import can_fuse, fused_conv

AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""The kinds of devices that know autocast; asked here, as torch.compile of 2.10 cannot ask."""

Folded = tuple[Tensor, Tensor]
"""The weight and bias that a layer is called with."""


class Conv(nn.Conv2d):
    """relu(norm(convolution) + add), the parts that are asked for; the parameters are nn.Conv2d's.

    A norm in evaluation mode is an affine map per channel, so it is folded into the weight in every pass
    (`fold_all`): nothing between the convolution and the norm has to be kept for the backward pass.
    """

    padding: tuple[int, ...]  # in numbers, never one of nn.Conv2d's words
    overwrite_gradient = False
    """Whether the gradient of the result may be overwritten, which saves a map at the peak of training: where
    the result goes into one convolution and nowhere else."""

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
        add: [B, K, H', W']; a folded network overwrites it with the result. Or a map of another size, to a
            layer that keeps x's size: then what `resized` makes of it.
        """
        weight, bias = self.weight, self.bias
        if isinstance(norm, nn.BatchNorm2d) and not norm.training:
            norm = fold_all([(self, norm)])[norm]
        if isinstance(norm, tuple):
            weight, bias = norm
            norm = None
        if add is not None and self.stride == (1, 1):
            add = resized(add, x)
        if relu and norm is None and bias is not None and can_fuse(x, weight):
            geometry = self.stride, self.padding, self.dilation, self.groups
            return fused_conv(x, weight, bias, add, geometry, self.overwrite_gradient)
        shape = self.stride[0], self.padding[0], self.groups
        if torch.is_grad_enabled() and frcnn_ops.train_conv_fits(x, weight, *shape):
            x = frcnn_ops.train_conv(x, weight, bias, self.stride[0])
        else:
            x = self._conv_forward(x, weight, bias)
        if norm is not None:
            x = norm(x)
        if add is not None:
            x = x.add_(add) if norm is None else x + add
        return F.relu(x, inplace=True) if relu else x


class Linear(nn.Linear):
    """A linear layer and a ReLU where asked for; the parameters are nn.Linear's."""

    def forward(self, x: Tensor, own: Folded | None = None, *, relu: bool = False) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M].

        own: the weight and bias to take instead of this layer's, which `for_calls` has made.
        """
        x = F.linear(x.flatten(1), *(own or (self.weight, self.bias)))
        return F.relu(x, inplace=True) if relu else x


def resized(add: Tensor, like: Tensor) -> Tensor:
    """A map as large as another one: at each position its nearest cell."""
    size = like.shape[-2:]
    if add.shape[-2:] == size:
        return add
    kind = add.device.type
    # which would copy to float32 and back
    with torch.autocast(kind, enabled=False) if kind in AUTOCAST else nullcontext():
        return F.interpolate(add, size=size, mode="nearest")


def for_calls(*layers: Sequence[nn.Module]) -> list[Folded | None]:
    """What to call each layer with: weight and bias in the type that it computes in, all cast at once.

    layers: one each, or several over the same input, whose outputs follow each other in one result. None for
    leaves of another kind, which have their own.
    """
    if not isinstance(layers[0][0], Conv | Linear):
        return [None] * len(layers)
    tensors = [_joined(beside, name) for beside in layers for name in ("weight", "bias")]
    own = cast(tensors, computed_dtype(tensors[0]))
    return list(zip(own[::2], own[1::2], strict=True))


def _joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    tensors: list[Tensor] = [layer.get_parameter(name) for layer in layers]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def computed_dtype(weight: Tensor) -> torch.dtype:
    """What a layer of this weight is computed in."""
    kind = weight.device.type
    known = weight.dtype == torch.float32 and kind in AUTOCAST
    return torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else weight.dtype


def fold_all(layers: Sequence[tuple[Conv, nn.BatchNorm2d]]) -> dict[nn.Module | None, Folded]:
    """Each norm in evaluation mode -> what it and the convolution before it are together.

    With s = gamma / sqrt(variance + eps), norm(conv(x, W)) = conv(x, s W) + (beta - s mean). gamma and beta
    learn through it. All layers of one eps are one launch, and under autocast the results have its dtype.
    """
    folded: dict[nn.Module | None, Folded] = {}
    layers = [(conv, norm) for conv, norm in layers if not norm.training]
    for eps in dict.fromkeys(norm.eps for _, norm in layers):  # one, but in a model that somebody changed
        convs, norms = zip(*((conv, norm) for conv, norm in layers if norm.eps == eps), strict=True)
        weights, biases = frcnn_ops.fold_norms(
            [conv.weight for conv in convs],
            [norm.weight for norm in norms],
            [norm.bias for norm in norms],
            [norm.running_mean for norm in norms],
            [norm.running_var for norm in norms],
            eps,
            computed_dtype(convs[0].weight),
        )
        folded.update(zip(norms, zip(weights, biases, strict=True), strict=True))
    return folded


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Tensors of one type in another, in one launch, and so their gradients back."""
    return tensors if tensors[0].dtype == dtype else _Cast.apply(dtype, *tensors)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _copied(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copied(grads, ctx.dtype)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
