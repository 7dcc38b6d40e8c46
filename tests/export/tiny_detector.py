"""A model that detects something in noise and whose export takes seconds, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import frcnn.backbone
from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN

CONFIG = ModelConfig(
    backbone=BackboneConfig(depth=18),
    fpn_channels=16,
    rpn=RPNConfig(pre_nms_test=100, post_nms_test=50),
    roi_head=RoIHeadConfig(fc_channels=32),
    num_classes=3,
)


def tiny_detector(seed: int = 0, config: ModelConfig = CONFIG) -> FasterRCNN:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    usual, frcnn.backbone.STAGE_CHANNELS = frcnn.backbone.STAGE_CHANNELS, (16, 16, 32, 32)
    try:
        model = FasterRCNN(config, DataConfig(size=(160, 128)), tuple("abc")).eval()
    finally:
        frcnn.backbone.STAGE_CHANNELS = usual
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                spread = value.std() if value.numel() > 1 and value.std() > 0 else torch.tensor(0.1)
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(
                    noise.abs() + 0.5 if name.endswith("running_var") else spread * noise + ("bn" in name)
                )
        model.roi_head.bbox_head.fc_cls.weight.mul_(30)
    return model


def write_images(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Noise of (height, width), as PNGs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        small = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height))
        image.save(folder / f"{index}.png")
    return folder
