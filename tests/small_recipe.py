"""A published recipe shrunk to a few megabytes."""

from __future__ import annotations

from dataclasses import replace

from frcnn.config import BackboneConfig, Recipe


def small(base: Recipe) -> Recipe:
    backbone = BackboneConfig(depth=18, style=base.model.backbone.style, pretrained="torchvision://resnet18")
    roi_head = replace(base.model.roi_head, fc_channels=32)
    return replace(base, model=replace(base.model, backbone=backbone, fpn_channels=16, roi_head=roi_head))
