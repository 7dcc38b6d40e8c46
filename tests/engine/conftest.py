"""The tiny recipe and a tiny data set: a training step takes milliseconds."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from runs import Run, group_of
from tiny_coco import write_tiny
from tiny_recipe import STAGE_CHANNELS, tiny_recipe

from frcnn.config import Recipe
from frcnn.zoo.build import build


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tiny tensors gain nothing from threads, and tests may share the machine."""
    threads(1)


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
def model(recipe):
    """Untrained, for the classes of `tiny`."""
    torch.manual_seed(0)
    return build(recipe, class_names=("bar", "square"))


@pytest.fixture
def longer(recipe):
    return replace(recipe, schedule=replace(recipe.schedule, epochs=4, decay_epochs=(3,)))


@pytest.fixture
def start(tiny, tmp_path):
    """``start("run", "--epochs", 4, slow_step=0.1)``: `frcnn train` of the tiny recipe in a process of its
    own, into the folder of that name; what is left of it is killed at the end."""
    runs = []

    def start(name, *options, validate=False, data=tiny, **hooks):
        arguments = ["train", "tiny", "--train-annotations", data[0], "--train-images", data[1]]
        if validate:
            arguments += ["--val-annotations", data[0], "--val-images", data[1]]
        arguments += ["--work-dir", tmp_path / name, "--device", "cpu", *options]
        runs.append(Run(arguments, tmp_path / f"output{len(runs)}.txt", **hooks))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.is_alive():
            run.kill()


@pytest.fixture
def pair(start):
    """``pair(...)``: two processes that train together, without torchrun."""

    def pair(*options, hooks=({}, {}), **common):
        return [
            start("run", *options, environment=environment, **common, **hooks[rank])
            for rank, environment in enumerate(group_of(2))
        ]

    return pair


@pytest.fixture
def folder(tmp_path):
    """Three images to detect in, two of them of one name."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (40, 60)), ("deep/a.png", (30, 30)), ("deep/b.jpg", (50, 20))):
        cv2.imwrite(str(tmp_path / "in" / name), np.full((*size, 3), 90, np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
