"""The model zoo: recipes, published checkpoints and their readers, and the proof of parity."""

from frcnn.checkpoint.pretrained import BACKBONE_WEIGHTS
from frcnn.zoo.coco import COCO_CLASSES
from frcnn.zoo.recipes import list_recipes, recipe

__all__ = ["BACKBONE_WEIGHTS", "COCO_CLASSES", "list_recipes", "recipe"]
