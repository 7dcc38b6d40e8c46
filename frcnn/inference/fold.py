"""The fast form of a network: the same forward passes over other leaves.

A frozen BatchNorm is an affine map per channel, so it disappears into the convolution before it: with
s = gamma / sqrt(variance + eps), weight' = s * weight and bias' = beta - s * mean, computed in float64 and
then cast. Layers over the same input become one. On a CPU the sum with a shortcut and the ReLU happen inside
the convolution (oneDNN), whose weights are laid out for it once, and float32 3x3 convolutions are Winograd's
where the CPU has the kernel.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.conv import Conv, Linear, fold_all
from frcnn.detector import FasterRCNN


def fold(model: FasterRCNN, dtype: torch.dtype = torch.float32, fused: bool = True) -> FasterRCNN:
    """A frozen copy of a model, in evaluation mode, that computes its convolutions and products in `dtype`.

    The model stays as it is, and nothing is shared with it. In float32 the results are the model's up to
    rounding. fused: use oneDNN's fused convolutions where this torch and CPU have them.
    """
    fused = fused and has_onednn(model.device, dtype)
    # the copy's tensors are the model's own until each leaf is swapped for one with tensors of its own
    shared = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    folded = copy.deepcopy(model, shared).eval()
    with torch.no_grad():
        _merge(folded.rpn_head, "rpn_cls", "rpn_reg")
        _merge(folded.roi_head.bbox_head, "fc_cls", "fc_reg")
        pooled, pool_size = folded.roi_head.bbox_head.shared_fcs[0], model.config.roi_head.pool_size
        for module in list(folded.modules()):
            for name, leaf in list(module.named_children()):
                if isinstance(leaf, Linear):
                    setattr(module, name, FoldedLinear(leaf, dtype, pool_size if leaf is pooled else 1))
                elif isinstance(leaf, Conv):
                    norm_name = _norm_name(name)
                    norm = getattr(module, norm_name, None)
                    setattr(module, name, FoldedConv(leaf, norm, dtype, fused))
                    if norm is not None:
                        setattr(module, norm_name, None)
    return folded


def _norm_name(conv: str) -> str:
    """The name of the norm that follows a convolution, beside it in the same module, if one does."""
    return "1" if conv == "0" else f"bn{conv.removeprefix('conv')}"


def _merge(head: nn.Module, first: str, second: str) -> None:
    """Two layers over the same input as one, under the first one's name."""
    layers = getattr(head, first), getattr(head, second)
    merged = copy.copy(layers[0])
    merged._parameters = {
        name: nn.Parameter(torch.cat([getattr(layer, name) for layer in layers]), requires_grad=False)
        for name in ("weight", "bias")
    }
    setattr(head, first, merged)
    setattr(head, second, None)


@torch.no_grad()
def fold_norm(conv: Conv, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the convolution that equals `conv` and then `norm` in evaluation mode."""
    if norm is None:
        weight = conv.weight.double()
        return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    conv, norm = copy.deepcopy(conv).double(), copy.deepcopy(norm).double().eval()
    return fold_all([(conv, norm)])[norm]


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch offers oneDNN's fused convolutions for this device and dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    if not all(hasattr(ops, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")):
        return False
    return {
        torch.float32: lambda: True,
        torch.bfloat16: lambda: ops._is_mkldnn_bf16_supported(),
        torch.float16: lambda: ops._is_mkldnn_fp16_supported(),
    }[dtype]()


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Whether `frcnn_ops.winograd_conv` computes this float32 convolution here."""
    return (
        conv.weight.device.type == "cpu"
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and frcnn_ops.winograd_fits(conv.in_channels, conv.out_channels)
        and frcnn_ops.winograd_available()
    )


class FoldedConv(nn.Module):
    """A `Conv` with its norm inside its weight. Channels-last in and out; `add` may be overwritten."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Conv, norm: nn.BatchNorm2d | None, dtype: torch.dtype, fused: bool):
        super().__init__()
        weight, bias = fold_norm(conv, norm)
        self.geometry = conv.padding, conv.stride, (1, 1), conv.groups
        self.fused = fused
        self.winograd = dtype == torch.float32 and suits_winograd(conv)
        if self.winograd:
            weight = frcnn_ops.winograd_weight(weight)
        else:
            weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
            if fused:
                # One layout for all images, so that a result does not depend on what came before it; what
                # oneDNN takes by itself suits a batch of small images, and costs 8 % of the time for one of
                # this size.
                typical = [1, conv.in_channels, 25, 42]  # the coarsest map of 800x1344
                weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, typical)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.to(dtype))

    def forward(
        self,
        x: Tensor,
        norm: None = None,
        *,
        add: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """relu(conv(x) + add); the norm and the layer beside are inside the weight."""
        if self.winograd:
            return frcnn_ops.winograd_conv(x, self.weight, self.bias, add, relu)
        if self.fused:
            ops, layer = torch.ops.mkldnn, (x, self.weight, self.bias, *self.geometry)
            if add is None:
                return ops._convolution_pointwise(*layer, "relu" if relu else "none", [], "")
            # Overwriting the sum's other part is safe: a block without shortcut convolution is its input's
            # only reader, since a stage's first block, which shares its input with the pyramid, has one.
            return ops._convolution_pointwise_(add, *layer, "add", 1, "relu" if relu else None, [], None)
        padding, stride, _, groups = self.geometry
        out = F.conv2d(x, self.weight, self.bias, stride, padding, groups=groups)
        if add is not None:
            out += add
        return F.relu(out, inplace=True) if relu else out


class FoldedLinear(nn.Module):
    """A `Linear` in `dtype`; with pool_size, over RoIAlign's channels-last result as it lies in memory."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: Linear, dtype: torch.dtype, pool_size: int = 1):
        super().__init__()
        weight = linear.weight
        by_position = weight.view(len(weight), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", by_position.detach().to(dtype, copy=True))
        self.register_buffer("bias", linear.bias.detach().to(dtype, copy=True))

    def forward(self, x: Tensor, *, relu: bool = False, beside: None = None) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M]."""
        x = x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x
        x = F.linear(x, self.weight, self.bias)
        return F.relu(x, inplace=True) if relu else x
