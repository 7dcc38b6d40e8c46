"""``frcnn convert``: one checkpoint format to another, in the formats of `frcnn.checkpoint.save`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from frcnn.checkpoint.load import Checkpoint, check_numbers, our_names, read_checkpoint
from frcnn.checkpoint.plain import from_plain
from frcnn.checkpoint.save import check_suffix, save_weights
from frcnn.checkpoint.torch_file import reading
from frcnn.config import DataConfig, ModelConfig, Recipe
from frcnn.files import check_keeps
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
        ValueError: another ending, or no folder to write to.
        CheckpointError: the source cannot be read or converted, or its weights are no finite real numbers.
        OSError: the target cannot be written; what was there before still is.
    """
    target = Path(target)
    check_suffix(target)
    check_keeps([source], target)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise ValueError(f"{target}: is a folder; name a file in it")
    entry = recipe_named(recipe) if isinstance(recipe, str) else recipe
    checkpoint = read_checkpoint(source)
    with reading(source):
        tensors, class_names, dialect, notes = our_names(checkpoint, *_configuration(checkpoint, entry))
        check_numbers(tensors)
        if entry is None and checkpoint.recipe is not None:
            entry = from_plain(Recipe, checkpoint.recipe)
    save_weights(target, tensors, entry, class_names)
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
