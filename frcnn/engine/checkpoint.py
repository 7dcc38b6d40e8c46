"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is a dict of plain values and tensors, so `torch.load(weights_only=True)` reads it. Its layout is
MMDetection's, so its weights load wherever MMDetection's do, `frcnn.load_checkpoint` included:

    state_dict   parameters and buffers
    optimizer    the optimiser's state
    meta         recipe (a plain dict), dataset_meta {"classes": names}, epoch, iter
    training     what resuming needs besides: settings that must not change, random states per process,
                 history of metrics (absent from a file that holds weights only)
"""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frcnn.config import Recipe
from frcnn.detector import FasterRCNN
from frcnn.zoo.build import build
from frcnn.zoo.checkpoint import CheckpointError, read_checkpoint
from frcnn.zoo.plain import from_plain, to_plain
from frcnn.zoo.torch_file import reading

__all__ = ["from_plain", "model_from_checkpoint", "read_training_state", "save_checkpoint", "to_plain"]

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: whoever reads `path`, even after a crash, finds the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_training_state(path: Path) -> dict[str, Any]:
    """The whole content of a last.pth that training wrote. Raises CheckpointError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is truncated, damaged, or of another program "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Delete it and train anew; best.pth beside it still has the best weights (weights=best.pth)"
        ) from None
    if not isinstance(content, dict) or content.get("training", {}).get("format") != FORMAT:
        raise CheckpointError(
            f"{path} does not hold the state of a training run of this version of frcnn; its weights "
            "may still do as a start (weights=)"
        )
    return content


def model_from_checkpoint(path: str | Path, device: torch.device | str | None = None) -> FasterRCNN:
    """The detector of a checkpoint that training wrote: its recipe, weights and class names.

    Raises CheckpointError where the file cannot be read, names no recipe, or one that its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.recipe is None:
        raise CheckpointError(
            f"{path} holds weights but no recipe: name the recipe as the model and give this file "
            "as its weights"
        )
    with reading(path):
        recipe = from_plain(Recipe, checkpoint.recipe)
    return build(recipe, weights=checkpoint, device=device)


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
