"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is a dict of plain values and tensors, so `torch.load(weights_only=True)` reads it. Its layout is
MMDetection's, so its weights load there and wherever MMDetection's load:

    state_dict   parameters and buffers
    optimizer    the optimiser's state
    meta         recipe (a plain dict), dataset_meta {"classes": names}, epoch, iter
    training     what resuming needs besides: settings that must not change, random states per process,
                 history of metrics (absent from a file that holds weights only)
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frcnn.config import Recipe

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that this package wrote. Raises CheckpointError."""
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is truncated, damaged, or of another program "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Use another one of the same run (best.pth, last.pth) or train anew"
        ) from None
    if not isinstance(content, dict) or not {"state_dict", "meta"} <= content.keys():
        raise CheckpointError(f"{path} was not written by frcnn: it has no 'state_dict' and 'meta'")
    if "recipe" not in content["meta"]:
        raise CheckpointError(
            f"{path} holds weights but no recipe; "
            "name the recipe and load them with frcnn.build(name, weights=…)"
        )
    return content


def recipe_of(checkpoint: dict[str, Any]) -> Recipe:
    """The recipe that a checkpoint was trained with, its number of classes included."""
    return from_plain(Recipe, checkpoint["meta"]["recipe"])


def class_names_of(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    return tuple(checkpoint["meta"]["dataset_meta"]["classes"])


def to_plain(value: Any) -> Any:
    """A dataclass as JSON-like values."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_plain(kind: Any, plain: Any) -> Any:
    """The dataclass `kind` from what `to_plain` made of it; absent fields take their defaults."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = plain.keys() - hints.keys()
        if unknown:
            raise CheckpointError(
                f"{kind.__name__} has no {', '.join(sorted(unknown))}: "
                "the file comes from another version of frcnn"
            )
        return kind(**{name: from_plain(hints[name], value) for name, value in plain.items()})
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if plain is None:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return from_plain(kind, plain)
    if typing.get_origin(kind) is tuple:
        return tuple(plain)
    return plain


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
