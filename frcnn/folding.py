"""The network in its inference form: norms folded into convolutions, each convolution one fused call.

A frozen BatchNorm is an affine map per channel, so it disappears into the convolution before it: with
s = gamma / sqrt(variance + eps), weight' = s * weight and bias' = beta - s * mean, computed in float64 and
then cast. On a CPU the sum with a shortcut and the ReLU happen inside the convolution (oneDNN), whose weights
are laid out for it once, and float32 3x3 convolutions are Winograd's where the CPU has the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frcnn_ops
from frcnn.backbone import BasicBlock, Bottleneck, ResNet
from frcnn.fpn import FPN
from frcnn.roi_head import BBoxHead
from frcnn.rpn import RPNHead


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the convolution that equals `conv` and then `norm` in evaluation mode."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * scale[:, None, None, None], (
        bias - norm.running_mean.double()
    ) * scale + norm.bias.detach().double()


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
    """relu(conv(x) + bias + add), the sum and the ReLU where asked for. Channels-last in and out.

    `add` may be overwritten by the result.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None,
        relu: bool,
        dtype: torch.dtype,
        fused: bool,
    ):
        super().__init__()
        weight, bias = fold_norm(conv, norm)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.relu = relu
        self.fused = fused
        self.winograd = dtype == torch.float32 and suits_winograd(conv)
        self.register_buffer(
            "weight",
            frcnn_ops.winograd_weight(weight)
            if self.winograd
            else weight.to(dtype).contiguous(memory_format=torch.channels_last),
        )
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if self.winograd:
            return frcnn_ops.winograd_conv(x, self.weight, self.bias, add, self.relu)
        if self.fused:
            return self._onednn(x, add)
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        if add is not None:
            out += add
        return F.relu(out, inplace=True) if self.relu else out

    def _onednn(self, x: Tensor, add: Tensor | None) -> Tensor:
        ops, geometry = torch.ops.mkldnn, (self.padding, self.stride, (1, 1), self.groups)
        weight = self.weight
        if not weight.is_mkldnn:
            # The layout suits the first image's size, and works for all. Two threads may both get here: each
            # has read a weight in the old layout, and either result will do.
            self.weight = weight = ops._reorder_convolution_weight(weight, *geometry, list(x.shape))
        if add is None:
            unary = "relu" if self.relu else "none"
            return ops._convolution_pointwise(x, weight, self.bias, *geometry, unary, [], "")
        unary = "relu" if self.relu else None
        return ops._convolution_pointwise_(add, x, weight, self.bias, *geometry, "add", 1, unary, [], None)


class FoldedBlock(nn.Module):
    """A residual block of either kind."""

    def __init__(self, block: BasicBlock | Bottleneck, dtype: torch.dtype, fused: bool):
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(FoldedConv(*pair, True, dtype, fused) for pair in pairs)
        self.shortcut = (
            None if block.downsample is None else FoldedConv(*block.downsample, False, dtype, fused)
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        # overwrites the identity: a block without shortcut convolution is its input's only reader, since a
        # stage's first block, which shares its input with the pyramid, has one
        return self.convs[-1](x, add=identity)


class FoldedResNet(nn.Module):
    def __init__(self, backbone: ResNet, dtype: torch.dtype, fused: bool):
        super().__init__()
        self.stem = FoldedConv(backbone.conv1, backbone.bn1, True, dtype, fused)
        self.stages = nn.ModuleList(
            nn.Sequential(*(FoldedBlock(block, dtype, fused) for block in layer))
            for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(images), 3, 2, padding=1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class FoldedFPN(nn.Module):
    def __init__(self, neck: FPN, dtype: torch.dtype, fused: bool):
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            FoldedConv(module.conv, None, False, dtype, fused) for module in neck.lateral_convs
        )
        self.fpn_convs = nn.ModuleList(
            FoldedConv(module.conv, None, False, dtype, fused) for module in neck.fpn_convs
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        lateral = self.lateral_convs[-1](features[-1])
        outputs = [self.fpn_convs[-1](lateral)]
        for index in range(len(features) - 2, -1, -1):
            coarse = F.interpolate(lateral, size=features[index].shape[-2:], mode="nearest")
            lateral = self.lateral_convs[index](features[index], add=coarse)
            outputs.insert(0, self.fpn_convs[index](lateral))
        outputs.append(outputs[-1][..., ::2, ::2].contiguous(memory_format=torch.channels_last))
        return outputs


class FoldedRPN(nn.Module):
    """Logits and deltas come from one convolution; proposals are made from them as RPNHead does it."""

    propose = RPNHead.propose

    def __init__(self, head: RPNHead, dtype: torch.dtype, fused: bool):
        super().__init__()
        self.config, self.strides = head.config, head.strides
        self.anchors = head.rpn_cls.out_channels
        both = nn.Conv2d(head.rpn_conv.out_channels, 5 * self.anchors, 1, device=head.rpn_cls.weight.device)
        with torch.no_grad():
            both.weight.copy_(torch.cat([head.rpn_cls.weight, head.rpn_reg.weight]))
            both.bias.copy_(torch.cat([head.rpn_cls.bias, head.rpn_reg.bias]))
        self.conv = FoldedConv(head.rpn_conv, None, True, dtype, fused)
        self.both = FoldedConv(both, None, False, dtype, fused)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for feature in features:
            both = self.both(self.conv(feature)).float()
            logits.append(both[:, : self.anchors])
            deltas.append(both[:, self.anchors :])
        return logits, deltas


class FoldedBoxHead(nn.Module):
    """Takes RoIAlign's channels-last result as it lies in memory; logits and deltas are one product."""

    def __init__(self, head: BBoxHead, pool_size: int, dtype: torch.dtype):
        super().__init__()
        self.logits = head.fc_cls.out_features
        layers = [(layer.weight, layer.bias) for layer in head.shared_fcs]
        first, bias = layers[0]
        by_position = first.view(len(first), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        layers[0] = (by_position, bias)
        layers.append(
            (
                torch.cat([head.fc_cls.weight, head.fc_reg.weight]),
                torch.cat([head.fc_cls.bias, head.fc_reg.bias]),
            )
        )
        for index, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{index}", weight.detach().to(dtype, copy=True))
            self.register_buffer(f"bias{index}", bias.detach().to(dtype, copy=True))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        x = pooled.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x, self.weight0, self.bias0), inplace=True)
        x = F.relu(F.linear(x, self.weight1, self.bias1), inplace=True)
        x = F.linear(x, self.weight2, self.bias2).float()
        return x[:, : self.logits], x[:, self.logits :]
