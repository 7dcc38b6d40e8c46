"""Feature pyramid network (Lin et al., "Feature Pyramid Networks for Object Detection", 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frcnn.conv import Conv, Folded, for_calls


class ConvModule(nn.Module):
    """A convolution with bias under the name `conv`, as MMDetection's checkpoints spell it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor, own: Folded | None = None, add: Tensor | None = None) -> Tensor:
        return self.conv(x, own, add=add)


class FPN(nn.Module):
    """One feature map per backbone stage -> as many of equal width, and one more by subsampling the last."""

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        own = for_calls(*([module.conv] for module in (*self.lateral_convs, *self.fpn_convs)))
        of_laterals, of_outputs = own[: len(features)], own[len(features) :]
        lateral = self.lateral_convs[-1](features[-1], of_laterals[-1])
        outputs = [self.fpn_convs[-1](lateral, of_outputs[-1])]
        for index in range(len(features) - 2, -1, -1):
            lateral = self.lateral_convs[index](features[index], of_laterals[index], lateral)
            outputs.insert(0, self.fpn_convs[index](lateral, of_outputs[index]))
        outputs.append(outputs[-1][..., ::2, ::2].contiguous(memory_format=torch.channels_last))
        return outputs
