"""``frcnn convert``: one checkpoint format to another.

`.safetensors` is ours: the tensors, and JSON metadata with the recipe and the class names. `.pth` is
MMDetection's: a dict of "meta" and "state_dict", readable there (2.x and 3.x) and by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn.config import DataConfig, ModelConfig, Recipe
from frcnn.zoo.checkpoint import Checkpoint, CheckpointError, our_names, read_checkpoint
from frcnn.zoo.recipes import recipe as recipe_named


def convert(source: str | Path, target: str | Path, recipe: str | Recipe | None = None) -> Path:
    """Write the weights of ``source``, in any format that `frcnn.load_checkpoint` reads, to ``target``.

    Args:
        target: a path ending in .safetensors or .pth; replaced whole if it exists.
        recipe: what the weights are of, or its name; default: what the file says. For torchvision's and
            detectron2's files it follows from the weights.

    Returns:
        ``target``.

    Raises:
        ValueError: another ending.
        CheckpointError: the source cannot be read or converted.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{target}: the name must end in .safetensors (ours) or .pth (MMDetection's)")
    if target.resolve() == Path(source).resolve():
        raise ValueError(f"{target}: the source and the target are the same file")
    checkpoint = read_checkpoint(source)
    entry = recipe_named(recipe) if isinstance(recipe, str) else recipe
    try:
        tensors, class_names, dialect, notes = our_names(checkpoint, *_configuration(checkpoint, entry))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    plain = checkpoint.recipe if entry is None else json.loads(json.dumps(asdict(entry)))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write = _write_safetensors if target.suffix == ".safetensors" else _write_mmdetection
        write(temporary, tensors, class_names, plain)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{source} ({dialect}) -> {target}: {len(tensors)} tensors, {len(class_names)} class names")
    for note in (*notes, *checkpoint.notes):
        print(f"- {note}")
    return target


def _configuration(checkpoint: Checkpoint, entry: Recipe | None) -> tuple[ModelConfig, DataConfig]:
    """The model and data configuration that other programs' weights are converted for."""
    if entry is None:
        names = checkpoint.tensors
        theirs = any("bottom_up" in name for name in names)
        depth = "r101" if any(".res4.6." in name or ".layer3.6." in name for name in names) else "r50"
        entry = recipe_named(f"faster_rcnn_{depth}_{'caffe_' if theirs else ''}fpn_1x_coco")
    rows = next((len(v) for n, v in checkpoint.tensors.items() if n.endswith("cls_score.bias")), 81)
    count = 80 if rows == 91 else rows - 1  # torchvision's COCO files count the ids that COCO skips
    return replace(entry.model, num_classes=count), entry.data


def _write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], class_names: tuple[str, ...], recipe: Mapping[str, Any] | None
) -> None:
    from safetensors.torch import save_file

    metadata = json.dumps({"classes": list(class_names), "recipe": recipe})
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", "frcnn": metadata})


def _write_mmdetection(
    path: Path, tensors: Mapping[str, Tensor], class_names: tuple[str, ...], recipe: Mapping[str, Any] | None
) -> None:
    meta: dict[str, Any] = {"CLASSES": tuple(class_names), "dataset_meta": {"classes": tuple(class_names)}}
    if recipe is not None:
        meta["recipe"] = dict(recipe)
    torch.save({"meta": meta, "state_dict": OrderedDict(tensors)}, path)
