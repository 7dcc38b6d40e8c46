"""The tiny recipe and a tiny data set: a training step takes milliseconds."""

from dataclasses import replace

import pytest
import torch
from tiny_coco import write_tiny
from tiny_recipe import STAGE_CHANNELS, tiny_recipe

from frcnn.config import Recipe


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
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", STAGE_CHANNELS)


@pytest.fixture
def tiny(tmp_path):
    """Annotation file and image folder."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.fixture
def longer(recipe):
    return replace(recipe, schedule=replace(recipe.schedule, epochs=4, decay_epochs=(3,)))
