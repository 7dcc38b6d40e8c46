"""ResNet and ResNeXt, with torchvision's parameter names.

He et al., "Deep Residual Learning for Image Recognition", 2015; Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frcnn.config import BackboneConfig
from frcnn.conv import Conv, Folded, fold_all

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STAGE_CHANNELS = (64, 128, 256, 512)


Norms = Mapping[nn.Module | None, Folded]
"""The norms that `fold_all` has folded into their convolutions."""


class Shortcut(nn.Sequential):
    """The 1x1 convolution and norm beside a block that changes width or resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(Conv(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor, folded: Norms) -> Tensor:  # type: ignore[override]
        return self[0](x, folded.get(self[1], self[1]))


def shortcut(in_channels: int, out_channels: int, stride: int) -> Shortcut | None:
    return (
        None if stride == 1 and in_channels == out_channels else Shortcut(in_channels, out_channels, stride)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (depths 18 and 34)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, config: BackboneConfig):
        super().__init__()
        self.conv1 = Conv(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor, folded: Norms) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x, folded)
        x = self.conv1(x, folded.get(self.bn1, self.bn1), relu=True)
        return self.conv2(x, folded.get(self.bn2, self.bn2), add=identity, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in a ResNeXt), 1x1 and a shortcut (depths from 50)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, config: BackboneConfig):
        super().__init__()
        width = channels * config.base_width // 64 * config.groups
        stride1, stride2 = (stride, 1) if config.style == "caffe" else (1, stride)
        self.conv1 = Conv(in_channels, width, 1, stride1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv(width, width, 3, stride2, padding=1, groups=config.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv(width, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor, folded: Norms) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x, folded)
        x = self.conv1(x, folded.get(self.bn1, self.bn1), relu=True)
        x = self.conv2(x, folded.get(self.bn2, self.bn2), relu=True)
        return self.conv3(x, folded.get(self.bn3, self.bn3), add=identity, relu=True)


class ResNet(nn.Module):
    """[B, C, H, W] -> four feature maps with strides 4, 8, 16, 32; their widths are `channels`."""

    def __init__(self, config: BackboneConfig, image_channels: int = 3):
        super().__init__()
        self.config = config
        block = BasicBlock if config.depth < 50 else Bottleneck
        self.conv1 = Conv(image_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        in_channels, stages = 64, []
        for blocks, channels in zip(STAGE_BLOCKS[config.depth], STAGE_CHANNELS, strict=True):
            stages.append(nn.Sequential())
            for index in range(blocks):
                stride = 2 if index == 0 and len(stages) > 1 else 1
                stages[-1].append(block(in_channels, channels, stride, config))
                in_channels = channels * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(channels * block.expansion for channels in STAGE_CHANNELS)
        self._initialize()
        self._freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.conv1(images, self.bn1, relu=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            folded = fold_all(list(_convolutions_and_norms(layer)))
            for block in layer:
                if self.config.recompute and x.requires_grad:
                    x = checkpoint(block, x, folded, use_reentrant=False)
                else:
                    x = block(x, folded)
            outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        norms = self.modules() if self.config.norm_eval else self._frozen_modules()
        for module in norms:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _frozen_modules(self) -> list[nn.Module]:
        frozen = self.config.frozen_stages
        tops = [self.conv1, self.bn1] if frozen >= 0 else []
        tops += [getattr(self, f"layer{stage}") for stage in range(1, frozen + 1)]
        return [module for top in tops for module in top.modules()]

    def _freeze(self) -> None:
        frozen = self._frozen_modules()
        if self.config.style == "caffe":
            frozen += [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False


def _convolutions_and_norms(stage: nn.Module) -> Iterator[tuple[Conv, nn.BatchNorm2d]]:
    """Each norm of a stage, behind the convolution that was registered before it."""
    before: nn.Module | None = None
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(before, Conv)
            yield before, module
        before = module
