"""Fixtures of the zoo's tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

import frcnn
from frcnn.config import BackboneConfig, Recipe


@pytest.fixture
def small_recipe() -> Recipe:
    """A published recipe shrunk to a ResNet-18 and narrow layers: the same code, a few megabytes."""
    base = frcnn.recipe("faster_rcnn_r50_fpn_1x_coco")
    return small(base)


def small(base: Recipe) -> Recipe:
    backbone = BackboneConfig(depth=18, style=base.model.backbone.style, pretrained="torchvision://resnet18")
    roi_head = replace(base.model.roi_head, fc_channels=32)
    return replace(base, model=replace(base.model, backbone=backbone, fpn_channels=16, roi_head=roi_head))
