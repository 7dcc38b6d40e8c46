"""A tiny recipe and a tiny data set: a training step takes milliseconds."""

from dataclasses import replace

import pytest
import torch
from tiny_coco import write_tiny

from frcnn.config import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    RoIHeadConfig,
    RPNConfig,
    ScheduleConfig,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and tests may share the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    """A ResNet-18 of few channels, so that steps and checkpoints cost little."""
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", (16, 16, 32, 32))


@pytest.fixture
def tiny(tmp_path):
    """Annotation file and image folder."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe()


def tiny_recipe() -> Recipe:
    return Recipe(
        "tiny",
        ModelConfig(
            backbone=BackboneConfig(depth=18, frozen_stages=-1, norm_eval=False),
            fpn_channels=16,
            rpn=RPNConfig(scales=(3.0,), samples=32, pre_nms_train=100, post_nms_train=50, post_nms_test=50),
            roi_head=RoIHeadConfig(sampling_ratio=2, finest_scale=16.0, fc_channels=32, samples=32),
        ),
        DataConfig(size=(64, 48), train_short_sides=(40, 48)),
        ScheduleConfig(
            epochs=2, decay_epochs=(1,), lr=0.02, lr_batch=2, images_per_process=2, warmup_iterations=3
        ),
    )


@pytest.fixture
def longer(recipe):
    return replace(recipe, schedule=replace(recipe.schedule, epochs=4, decay_epochs=(3,)))
