"""Faster R-CNN as in MMDetection's model zoo, without mmcv. See README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN
    from frcnn.engine.evaluate import evaluate
    from frcnn.engine.train import train
    from frcnn.structures import Batch, Detections
    from frcnn.zoo.build import build
    from frcnn.zoo.checkpoint import load_checkpoint
    from frcnn.zoo.recipes import list_recipes, recipe

__version__ = "0.1.0"

# Imported on first use: training needs TensorBoard and pycocotools, prediction does not.
_HOMES = {
    "Batch": "frcnn.structures",
    "Detections": "frcnn.structures",
    "FasterRCNN": "frcnn.detector",
    "build": "frcnn.zoo.build",
    "evaluate": "frcnn.engine.evaluate",
    "list_recipes": "frcnn.zoo.recipes",
    "load_checkpoint": "frcnn.zoo.checkpoint",
    "recipe": "frcnn.zoo.recipes",
    "train": "frcnn.engine.train",
}
__all__ = [
    "Batch",
    "Detections",
    "FasterRCNN",
    "build",
    "evaluate",
    "list_recipes",
    "load_checkpoint",
    "recipe",
    "train",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'frcnn' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
