"""Faster R-CNN as in MMDetection's model zoo, without mmcv. See README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frcnn.checkpoint.download import DownloadError
    from frcnn.checkpoint.load import CheckpointError, load_checkpoint
    from frcnn.config import Recipe
    from frcnn.data.coco import DatasetError, load_dataset
    from frcnn.detector import FasterRCNN
    from frcnn.engine.callbacks import Callback
    from frcnn.engine.evaluate import evaluate
    from frcnn.engine.interrupt import Interrupted
    from frcnn.engine.not_finite import NonFiniteLoss
    from frcnn.engine.train import train
    from frcnn.inference.video import video
    from frcnn.read_image import ImageError
    from frcnn.structures import Batch, Detection, Detections
    from frcnn.zoo.build import build, load
    from frcnn.zoo.recipes import UnknownRecipe, list_recipes, recipe

__version__ = "0.1.0"

# Imported on first use: training needs hotcoco, prediction does not.
_HOMES = {
    "Batch": "frcnn.structures",
    "Callback": "frcnn.engine.callbacks",
    "CheckpointError": "frcnn.checkpoint.load",
    "DatasetError": "frcnn.data.coco",
    "Detection": "frcnn.structures",
    "Detections": "frcnn.structures",
    "DownloadError": "frcnn.checkpoint.download",
    "FasterRCNN": "frcnn.detector",
    "ImageError": "frcnn.read_image",
    "Interrupted": "frcnn.engine.interrupt",
    "NonFiniteLoss": "frcnn.engine.not_finite",
    "Recipe": "frcnn.config",
    "UnknownRecipe": "frcnn.zoo.recipes",
    "build": "frcnn.zoo.build",
    "evaluate": "frcnn.engine.evaluate",
    "list_recipes": "frcnn.zoo.recipes",
    "load": "frcnn.zoo.build",
    "load_checkpoint": "frcnn.checkpoint.load",
    "load_dataset": "frcnn.data.coco",
    "recipe": "frcnn.zoo.recipes",
    "train": "frcnn.engine.train",
    "video": "frcnn.inference.video",
}
__all__ = [
    "Batch",
    "Callback",
    "CheckpointError",
    "DatasetError",
    "Detection",
    "Detections",
    "DownloadError",
    "FasterRCNN",
    "ImageError",
    "Interrupted",
    "NonFiniteLoss",
    "Recipe",
    "UnknownRecipe",
    "build",
    "evaluate",
    "list_recipes",
    "load",
    "load_checkpoint",
    "load_dataset",
    "recipe",
    "train",
    "video",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'frcnn' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
