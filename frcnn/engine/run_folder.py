"""The folder of a training run: what is in it, and whether a run may start or go on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from frcnn.config import Recipe
from frcnn.data import CocoDataset
from frcnn.engine.checkpoint import checksum, read_training_state, to_plain
from frcnn.files import replace_text
from frcnn.zoo.checkpoint import CheckpointError


class RunFolder:
    """last.pth, best.pth, log.jsonl, recipe.json and tensorboard/ of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.last = path / "last.pth"
        self.best = path / "best.pth"

    def check(self, resume: bool) -> None:
        """Raise CheckpointError where there is nothing to resume, or another run to overwrite."""
        if resume and not self.last.is_file():
            raise CheckpointError(f"nothing to resume: {self.last} does not exist")
        if not resume and self.last.exists():
            raise CheckpointError(
                f"{self.last} exists: resume that run, give another work_dir, or delete it to start over"
            )

    def prepare(self, recipe: Recipe) -> None:
        """The first change to the folder, made when nothing can be refused any more."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (self.last.name, self.best.name, "recipe.json", "log.jsonl"):
            (self.path / f".{name}.tmp").unlink(missing_ok=True)  # of a run that was killed
        replace_text(self.path / "recipe.json", json.dumps(to_plain(recipe), indent=2) + "\n")

    def state_to_resume(
        self, recipe: Recipe, settings: dict[str, Any], dataset: CocoDataset
    ) -> dict[str, Any]:
        """The content of last.pth. Raises CheckpointError where it is of other settings or data."""
        state = read_training_state(self.last)
        training = state["training"]
        was = {
            "recipe": state["meta"]["recipe"],
            "settings": training["settings"],
            "data": training["data"],
        }
        now = {"recipe": to_plain(recipe), "settings": settings, "data": fingerprint(dataset)}
        differing = _differences(was, now)
        if differing:
            raise CheckpointError(
                f"{self.last} comes from a run with other settings, so it cannot be continued exactly: "
                + "; ".join(differing)
                + ". Resume with the settings of that run, or train anew in another work_dir with weights="
                + str(self.last)
            )
        return state


def fingerprint(dataset: CocoDataset) -> dict[str, Any]:
    """What tells one training set from another, as plain values."""
    arrays = dataset.image_ids, dataset.boxes, dataset.labels
    return {
        "images": len(dataset),
        "boxes": len(dataset.boxes),
        "content": checksum([torch.from_numpy(array) for array in arrays]),
        "classes": list(dataset.class_names),
    }


def _differences(was: dict, now: dict, path: str = "") -> list[str]:
    """'name was old, is new' for every leaf that differs."""
    lines = []
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{path}{name}.")
        elif old != new:
            lines.append(f"{path}{name} was {old}, is {new}")
    return lines
