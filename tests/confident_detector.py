"""A small network whose random scores pass the threshold often."""

from __future__ import annotations

import torch

from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN

SMALL = ModelConfig(
    backbone=BackboneConfig(depth=18),
    fpn_channels=32,
    rpn=RPNConfig(pre_nms_test=100, post_nms_test=50),
    roi_head=RoIHeadConfig(fc_channels=64),
    num_classes=3,
)
DATA = DataConfig(size=(160, 96))


def confident(config: ModelConfig = SMALL, data: DataConfig = DATA, seed: int = 0) -> FasterRCNN:
    """A model with lively norms whose random scores pass the threshold often."""
    torch.manual_seed(seed)
    model = FasterRCNN(config, data, tuple("abcdefg"[: config.num_classes])).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(std=0.1)
        model.roi_head.bbox_head.fc_cls.weight.mul_(15)
        model.rpn_head.rpn_cls.weight.mul_(20)
    return model
