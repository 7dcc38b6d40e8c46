"""The folder of a training run: whether a run may start or go on there, and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frcnn.checkpoint.load import CheckpointError, check_numbers, compare
from frcnn.checkpoint.plain import to_plain
from frcnn.checkpoint.run_state import FORMAT, read_training_state, remedy_for, set_random_state
from frcnn.checkpoint.save import checksum, save_checkpoint, weights_content
from frcnn.checkpoint.torch_file import reading, shown
from frcnn.config import Recipe
from frcnn.data import CocoDataset
from frcnn.detector import FasterRCNN
from frcnn.engine.bad_images import BadImages
from frcnn.engine.distributed import Processes
from frcnn.engine.loss_scale import LossScale
from frcnn.files import check_folder, check_keeps, replace_text, set_aside, temporary_of
from frcnn.inference.hardware import Precision

Mode = Literal["eager", "graph"]
"""How a training step is run."""


@dataclass
class RunState:
    """All that changes in a run, random states aside."""

    model: FasterRCNN
    optimizer: torch.optim.Optimizer
    bad_images: BadImages
    loss_scale: LossScale | None = None
    average: FasterRCNN | None = None
    """With the averages of the weights, if there are any."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every evaluation, and its epoch."""
    log: dict[str, Any] | None = None
    """What the log has summed up for its next line."""
    steps: int = 0


@dataclass(frozen=True)
class Settings:
    """Besides recipe and data, what a resumed run must have in common with the interrupted one."""

    seed: int
    precision: Precision
    mode: Mode
    batches_per_step: int
    """Of all processes together; a resumed run keeps it, whatever its number of processes."""


@dataclass(frozen=True)
class TrainResult:
    """What training left behind.

    checkpoint: last.pth, from which training resumes; best: best.pth, the weights of the epoch with the best
    validation AP (None without a validation set). metrics: of the last evaluation; history: of all of them.
    bad_images: path of a training image that could not be used -> how often another one took its place.
    """

    work_dir: Path
    checkpoint: Path
    best: Path | None
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    bad_images: dict[str, int] = field(default_factory=dict)


def folder_of(work_dir: str | Path | None, recipe: Recipe) -> Path:
    return Path(work_dir or Path("work_dirs") / recipe.name)


class RunFolder:
    """last.pth, best.pth, log.jsonl, recipe.json and tensorboard/ of one run."""

    def __init__(
        self, path: Path, recipe: Recipe, settings: Settings, dataset: CocoDataset, processes: Processes
    ):
        self.path = path
        self.settings = settings
        self.processes = processes
        self.last = path / "last.pth"
        self.best = path / "best.pth"
        reports = map(self.not_finite, range(processes.count))
        self.files = self.last, self.best, path / "recipe.json", path / "log.jsonl", *reports
        self.recipe = recipe
        self.dataset = dataset

    def check(self, resume: bool, inputs: Iterable[str | Path] = ()) -> None:
        """Raise CheckpointError where there is nothing to resume, or another run to overwrite.

        inputs: files that the run reads. Raises ValueError where it would write one of them.
        """
        check_folder(self.path)
        check_keeps(inputs, *self.files)
        if resume and not self.last.exists():
            raise CheckpointError(
                f"nothing to resume: {self.last} does not exist; leave out resume=True to start"
            )
        if not resume and self.last.exists():
            raise CheckpointError(
                f"{self.last} exists: go on with that run by resume=True, give another work_dir, or delete "
                "it to start over"
            )
        if not resume and self.best.exists():
            raise CheckpointError(
                f"{self.best} exists, of a run whose last.pth is gone: give another work_dir, or move it away"
            )

    def not_finite(self, rank: int) -> Path:
        """Where a process reports a step that was not finite."""
        return self.path / f"not_finite{f'_process{rank}' if self.processes.count > 1 else ''}.json"

    def prepare(self, resume: bool) -> None:
        """The first change to the folder, made when nothing can be refused any more.

        Files that have our names without a checkpoint beside them, of a run that failed early or somebody's,
        get other names.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            temporary_of(file).unlink(missing_ok=True)  # of a run that was killed
        recipe, *others = self.files[2:]
        text = json.dumps(to_plain(self.recipe), indent=2) + "\n"
        if not resume:
            same = recipe.exists() and recipe.read_bytes() == text.encode()
            for file in others if same else (recipe, *others):
                set_aside(file)
        replace_text(recipe, text)

    def save(self, state: RunState, epoch: int, random_states: list[dict], best: bool) -> None:
        """Write last.pth, and best.pth if this is the best. random_states: of every process."""
        names = self.dataset.class_names
        weights = state.model.state_dict()
        average = None if state.average is None else state.average.state_dict()
        content = weights_content(weights, self.recipe, names, epoch=epoch, iter=state.steps)
        if best:
            save_checkpoint(self.best, content if average is None else {**content, "state_dict": average})
        training = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "data": _fingerprint(self.dataset),
            "threads": torch.get_num_threads(),
            "random_states": random_states,
            "history": state.history,
            "bad_images": state.bad_images.state(),
            "log": state.log,
            "loss_scale": state.loss_scale and state.loss_scale.state(),
            "average": average,
        }
        save_checkpoint(
            self.last, {**content, "optimizer": state.optimizer.state_dict(), "training": training}
        )

    def resume(self, state: RunState) -> list[str]:
        """Fill `state`, and set this process's random state, from last.pth; returns notes for the user.

        Raises CheckpointError where that is damaged, or of a run with other settings or data, or more
        processes are here than a step has batches.
        """
        content = read_training_state(self.last)
        training = content["training"]
        batches = training["settings"]["batches_per_step"]
        if self.settings.mode == "eager":  # a graph is of one batch
            self.settings = replace(self.settings, batches_per_step=batches)
        rank, count, before = self.processes.rank, self.processes.count, len(training["random_states"])
        differing = [
            *_differences(content["meta"]["recipe"], to_plain(self.recipe)),
            *_differences(training["settings"], asdict(self.settings)),
            *_differences(training["data"], _fingerprint(self.dataset), "the training set's "),
        ]
        if differing:
            raise CheckpointError(
                f"{self.last} comes from a run with other settings, so it cannot be continued exactly: "
                + "; ".join(differing)
                + ". Resume with the settings of that run, or train anew in another work_dir with weights="
                + str(self.last)
            )
        if count > batches:
            raise CheckpointError(
                f"{self.last}: a step of that run has {batches} batches, which cannot be dealt out to "
                f"{count} processes; resume with at most {batches}"
            )
        with reading(self.last, remedy_for(self.last)):
            _restore_weights(state.model, content["state_dict"], "state_dict")
            if state.average is not None:
                _restore_weights(state.average, training["average"] or {}, "training.average")
            _restore_optimizer(state.optimizer, content["optimizer"]["state"])
            if rank < max(before, 1):
                set_random_state(training["random_states"][rank])
            state.bad_images.restore(training["bad_images"])
            if state.loss_scale is not None:
                state.loss_scale.restore(training["loss_scale"])
        state.history[:], state.log = training["history"], training["log"]
        state.steps = content["meta"]["iter"]
        notes = []
        if count != before:
            notes.append(
                f"{count} processes go on with a run of {before}: each step has the same {batches} batches, "
                "whose gradients are summed in another order, so the weights will differ from an "
                "uninterrupted run's, at first in the last bits"
            )
        threads = torch.get_num_threads()
        if state.model.device.type != "cpu" or threads == training["threads"]:
            return notes
        # not set here: their number belongs to the whole program, and may be chosen for the machine
        return [
            *notes,
            f"torch computes with {threads} threads, and did with {training['threads']} before: sums are "
            "rounded in another order, so the weights will differ from an uninterrupted run's, at first in "
            f"the last bits; resume with OMP_NUM_THREADS={training['threads']} for the same",
        ]


def _restore_weights(model: nn.Module, saved: dict[str, Tensor], field: str) -> None:
    difference = compare(model.state_dict(), saved)
    if difference:
        raise CheckpointError(f"{field}: the weights do not fit the model\n{difference}")
    check_numbers(saved)
    for name, own in model.state_dict().items():
        if (kind := saved.get(name, own).dtype) != own.dtype:
            raise CheckpointError(f"{field}.{name} is {kind}, and training keeps {own.dtype}")
    model.load_state_dict(saved)


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """What it keeps of each parameter; rates follow from recipe and settings, which have been compared."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    missing = sorted(set(range(len(parameters))) - saved.keys())
    if missing:  # a step leaves something with every parameter
        raise CheckpointError(f"optimizer.state lacks {len(missing)} parameters: {missing[:3]}")
    for index, entry in saved.items():
        kept = optimizer.state[parameters[index]]
        if entry.keys() != kept.keys():
            raise CheckpointError(f"optimizer.state.{index}: it is of another optimizer")
        for name, own in kept.items():
            if (entry[name].shape, entry[name].dtype) != (own.shape, own.dtype):
                raise CheckpointError(f"optimizer.state.{index}.{name}: of another kind than its parameter")
            if not entry[name].isfinite().all():
                raise CheckpointError(f"optimizer.state.{index}.{name} is not finite")
            if name in ("step", "exp_avg_sq") and (entry[name] < 0).any():
                raise CheckpointError(f"optimizer.state.{index}.{name} is negative")
            own.copy_(entry[name])


def _fingerprint(dataset: CocoDataset) -> dict[str, Any]:
    """What tells one training set from another, as plain values."""
    arrays = dataset.image_ids, dataset.boxes, dataset.labels
    return {
        "images": len(dataset),
        "boxes": len(dataset.boxes),
        "content": checksum([torch.from_numpy(array) for array in arrays]),
        "classes": list(dataset.class_names),
    }


def _differences(was: dict, now: dict, path: str = "") -> list[str]:
    """'name=old, now name=new' for every leaf that differs."""
    lines = []
    for name in sorted(was.keys() | now.keys(), key=str):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{path}{name}.")
        elif old != new:
            name = f"{path}{shown(name)}"
            lines.append(f"{name}={shown(str(old))}, now {name}={shown(str(new))}")
    return lines
