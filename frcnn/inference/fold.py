"""The fast form of a network: the same forward passes over other leaves.

A frozen BatchNorm is an affine map per channel, so it disappears into the convolution before it: with
s = gamma / sqrt(variance + eps), weight' = s * weight and bias' = beta - s * mean, computed in float64 and
then cast. Layers over the same input become one, and a shortcut's bias is added by its block's last
convolution. On a CPU the sum with a shortcut and the ReLU happen inside the convolution (oneDNN), whose
weights are laid out for it once, and float32 3x3 convolutions are Winograd's where the CPU has the kernel. On
a GPU `Epilogue` says where they happen.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.backbone import Bottleneck, Shortcut
from frcnn.conv import Conv, Linear, fold_all, resized
from frcnn.detector import FasterRCNN

Epilogue = Literal["product", "cudnn", "kernel"]
"""Where a GPU adds a layer's bias and another map, and applies its ReLU.

"kernel": in one pass over the convolution's result, `frcnn_ops.conv_epilogue`.
"cudnn": inside cuDNN's convolution where the layer ends in a ReLU, otherwise as "kernel".
"product": as "cudnn", but a 1x1 convolution that adds no map is a matrix product that cuBLASLt finishes: the
fewest passes over maps, 7 in R-50-FPN where "kernel" has 67. Which is fastest on which GPU was not measured;
`benchmarks/sweep.py` does.
"""


def fold(
    model: FasterRCNN,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
    epilogue: Epilogue = "product",
    standard: bool = False,
) -> FasterRCNN:
    """A frozen copy of a model, in evaluation mode, that computes its convolutions and products in `dtype`.

    The model stays as it is, and nothing is shared with it. In float32 the results are the model's up to
    rounding. fused: compute what follows a convolution with it, by oneDNN where this torch and CPU have that,
    or as `epilogue` says on a GPU; otherwise in operators of its own, which a compiler fuses. standard: with
    layers that every runtime knows, whatever this machine has, for export.
    """
    finish = "apart"
    if standard:
        finish = "standard"
    elif fused and model.device.type == "cuda":
        finish = epilogue
    elif fused and has_onednn(model.device, dtype):
        finish = "onednn"
    # the copy's tensors are the model's own until each leaf is swapped for one with tensors of its own
    shared = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    folded = copy.deepcopy(model, shared).eval()
    with torch.no_grad():
        _merge(folded.rpn_head, "rpn_cls", "rpn_reg")
        _merge(folded.roi_head.bbox_head, "fc_cls", "fc_reg")
        pooled, pool_size = folded.roi_head.bbox_head.shared_fcs[0], model.config.roi_head.pool_size
        for module in list(folded.modules()):
            last = "conv3" if isinstance(module, Bottleneck) else "conv2"
            beside = getattr(module, "downsample", None)  # not folded yet: it comes after its block
            for name, leaf in list(module.named_children()):
                if isinstance(leaf, Linear):
                    setattr(
                        module, name, FoldedLinear(leaf, dtype, finish, pool_size if leaf is pooled else 1)
                    )
                elif isinstance(leaf, Conv):
                    norm_name = _norm_name(name)
                    norm = getattr(module, norm_name, None)
                    weight, shift = fold_norm(leaf, norm)
                    if beside is not None and name == last:
                        shift = shift + fold_norm(*beside)[1]
                    bias = None if isinstance(module, Shortcut) else shift
                    setattr(module, name, FoldedConv(leaf, weight, bias, dtype, finish))
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
    """A `Conv` with another weight and bias. Channels-last in and out; `add` may be overwritten.

    finish: where what follows the convolution happens: an `Epilogue`, "onednn", or in operators of its own:
    "apart", or "standard" without Winograd.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: Conv, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, finish: str):
        super().__init__()
        self.geometry = conv.padding, conv.stride, (1, 1), conv.groups
        self.finish = finish
        self.is_product = conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
        self.winograd = dtype == torch.float32 and finish != "standard" and suits_winograd(conv)
        if self.winograd:
            weight = frcnn_ops.winograd_weight(weight)
        else:
            weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
            if finish == "onednn":
                # One layout for all images, so that a result does not depend on what came before it; what
                # oneDNN takes by itself suits a batch of small images, and costs 8 % of the time for one of
                # this size.
                typical = [1, conv.in_channels, 25, 42]  # the coarsest map of 800x1344
                weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, typical)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(
        self,
        x: Tensor,
        norm: None = None,
        *,
        add: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """relu(conv(x) + add); the norm and the layer beside are inside the weight."""
        if self.finish in ("product", "cudnn", "kernel"):
            return self._on_gpu(x, add, relu)
        if add is not None and self.geometry[1] == (1, 1):
            add = resized(add, x)
        if self.winograd:
            return frcnn_ops.winograd_conv(x, self.weight, self.bias, add, relu)
        if self.finish == "onednn":
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

    def _on_gpu(self, x: Tensor, add: Tensor | None, relu: bool) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        if self.finish == "product" and self.is_product and add is None and self.bias is not None:
            rows = x.permute(0, 2, 3, 1)  # as they lie in memory
            out = product(rows.flatten(0, 2), self.weight.flatten(1), self.bias, relu)
            return out.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)
        if relu and self.finish != "kernel":
            layer = self.bias, stride, padding, dilation, groups
            if add is None:
                return torch.cudnn_convolution_relu(x, self.weight, *layer)
            return torch.cudnn_convolution_add_relu(x, self.weight, add, 1.0, *layer)
        out = F.conv2d(x, self.weight, None, stride, padding, groups=groups)
        return out if self.bias is None else frcnn_ops.conv_epilogue(out, self.bias, add, relu)


def product(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """relu(x weight' + bias) for x [R, N] and weight [M, N]: one product where cuBLASLt finishes it."""
    if relu:
        return torch._addmm_activation(bias, x, weight.t())
    return torch.addmm(bias, x, weight.t())


class FoldedLinear(nn.Module):
    """A `Linear` in `dtype`; with pool_size, over RoIAlign's channels-last result as it lies in memory."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: Linear, dtype: torch.dtype, finish: str, pool_size: int = 1):
        super().__init__()
        self.on_gpu = finish in ("product", "cudnn", "kernel")
        self.channels_last = finish != "standard"
        weight = linear.weight
        pool_size = pool_size if self.channels_last else 1
        by_position = weight.view(len(weight), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", by_position.detach().to(dtype, copy=True))
        self.register_buffer("bias", linear.bias.detach().to(dtype, copy=True))

    def forward(self, x: Tensor, own: None = None, *, relu: bool = False) -> Tensor:
        """[R, N], or [R, C, h, w] with N = C*h*w, -> [R, M]."""
        x = (x.permute(0, 2, 3, 1) if self.channels_last and x.ndim == 4 else x).flatten(1)
        if self.on_gpu:
            return product(x, self.weight, self.bias, relu)
        x = F.linear(x, self.weight, self.bias)
        return F.relu(x, inplace=True) if relu else x
