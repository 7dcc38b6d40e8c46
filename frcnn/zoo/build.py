"""`frcnn.build` and `frcnn.load`: a detector from a recipe, or from a file that holds one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from frcnn.checked import OptionError
from frcnn.checkpoint.download import checkpoint_addresses, download
from frcnn.checkpoint.load import (
    Checkpoint,
    CheckpointError,
    check_fit,
    class_count,
    load_checkpoint,
    read_checkpoint,
)
from frcnn.checkpoint.plain import from_plain
from frcnn.checkpoint.pretrained import load_backbone, untrained_consequences
from frcnn.checkpoint.torch_file import reading
from frcnn.config import Recipe
from frcnn.detector import FasterRCNN
from frcnn.inference.hardware import resolve_device
from frcnn.zoo.coco import COCO_CLASSES
from frcnn.zoo.recipes import recipe as recipe_named

LARGE_INPUT = 1 << 24
"""Pixels of an input, beyond which `load` tells how much memory a stranger's recipe will take."""

BYTES_PER_PIXEL = 370
"""Of the input: what R-50-FPN takes to detect in float32, measured on a CPU at 2048x2048 and 3072x3072."""


def build(
    name_or_recipe: str | Recipe,
    weights: str | Path | Mapping[str, Any] | Checkpoint | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    reinit_heads: bool = False,
) -> FasterRCNN:
    """A detector in evaluation mode.

    Args:
        name_or_recipe: a recipe, or the name of one of the zoo (see `frcnn.list_recipes`).
        weights: None (random), "random" (the same, to train from, with a warning of what that means where it
            matters), "coco" (the recipe's published checkpoint, downloaded once), "imagenet" (the
            backbone's initialization that training starts from, downloaded once; the rest is random), or the
            path of a checkpoint, or a state dict.
        num_classes: default: the number of ``class_names``, else the checkpoint's, else the recipe's.
        class_names: the classes in the order of their labels; default: what the checkpoint says.
        device: where the model goes; default: the CPU.
        reinit_heads: load everything but the class and box layer, to train other classes from there.

    Raises:
        KeyError: no such recipe.
        ValueError: class names and number contradict each other, no checkpoint is published, or this machine
            has no such device.
        DownloadError: "coco" or "imagenet" could not be downloaded; the message says which file to put where.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    device = resolve_device(device or "cpu")
    entry = recipe_named(name_or_recipe) if isinstance(name_or_recipe, str) else name_or_recipe
    if class_names is not None and num_classes not in (None, len(class_names)):
        raise ValueError(f"num_classes={num_classes} contradicts the {len(class_names)} class_names")
    checkpoint = None
    if weights == "coco":
        checkpoint = _published(entry)
    elif weights is not None and weights not in ("imagenet", "random"):
        checkpoint = read_checkpoint(weights)
    count = num_classes if class_names is None else len(class_names)
    if count is None and checkpoint is not None and not reinit_heads:
        count = len(checkpoint.class_names) or None
    if count is not None:
        entry = replace(entry, model=replace(entry.model, num_classes=count))

    if checkpoint is not None:  # before memory is taken for what a file only claims
        with torch.device("meta"), reading(checkpoint.origin):
            sketch = FasterRCNN(entry.model, entry.data, tuple(class_names or ()))
        check_fit(sketch, checkpoint, reinit_heads)
    model = FasterRCNN(entry.model, entry.data, tuple(class_names or ()))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, reinit_heads)
    elif weights == "imagenet":
        load_backbone(model)
    elif weights == "random":
        for consequence in untrained_consequences(entry.model.backbone):
            warnings.warn(consequence, stacklevel=2)
    return model.to(device).eval()


def load(
    source: str | Path | Mapping[str, Any],
    recipe: str | Recipe | None = None,
    device: torch.device | str | None = None,
) -> FasterRCNN:
    """The detector of a checkpoint, in evaluation mode: its recipe, weights and class names.

    Args:
        source: a file that `FasterRCNN.save`, training or ``frcnn convert`` wrote; with ``recipe`` also any
            other that `frcnn.load_checkpoint` reads, or a state dict.
        recipe: what the weights are of, or its name; default: what the file says. The number of classes
            follows the weights.
        device: where the model goes; default: the CPU.

    Raises:
        CheckpointError: the file cannot be read, names no recipe, or one that its weights do not fit.
        KeyError: no recipe has that name.
    """
    checkpoint = read_checkpoint(source)
    if recipe is None and checkpoint.recipe is None:
        raise CheckpointError(
            f"{checkpoint.origin} holds weights but no recipe: say which, as in "
            'frcnn.load(…, recipe="faster_rcnn_r50_fpn_1x_coco"); on the command line, name the recipe '
            "as the model and give this file as its weights"
        )
    if recipe is None:
        with reading(checkpoint.origin):
            entry = from_plain(Recipe, checkpoint.recipe)
        width, height = entry.data.size
        if width * height > LARGE_INPUT:
            gigabytes = width * height * BYTES_PER_PIXEL / 1e9
            warnings.warn(
                f"{checkpoint.origin}: its recipe asks for {width}x{height} (data.size), which takes "
                f"{gigabytes:.0f} GB or more for each; another size=(1333, 800) needs less",
                stacklevel=2,
            )
        return build(entry, weights=checkpoint, device=device)
    return build(recipe, weights=checkpoint, num_classes=class_count(checkpoint), device=device)


def _published(entry: Recipe) -> Checkpoint:
    if entry.published is None or not entry.published.checkpoint:
        raise OptionError(f"no checkpoint of {entry.name} is published; pass weights=PATH")
    path = download(checkpoint_addresses(entry.published.checkpoint))
    checkpoint = read_checkpoint(path)
    return checkpoint if checkpoint.class_names else replace(checkpoint, class_names=COCO_CLASSES)
