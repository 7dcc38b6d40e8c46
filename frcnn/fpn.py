"""Feature pyramid network (Lin et al., "Feature Pyramid Networks for Object Detection", 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvModule(nn.Module):
    """A convolution with bias under the name `conv`, as MMDetection's checkpoints spell it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(nn.Module):
    """One feature map per backbone stage -> as many of equal width, and one more by subsampling the last."""

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for fine, coarse in zip(laterals[-2::-1], laterals[:0:-1], strict=True):
            fine += F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return outputs
