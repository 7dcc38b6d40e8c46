"""Training: one plain loop.

A step's number (`iteration`, counted from 0 over all epochs) determines its pictures, their augmentation and
its learning rate. With the weights, the momentum and the random state it is all that resuming needs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frcnn.config import Recipe
from frcnn.data import CocoDataset, TrainingBatches, load_coco, training_loader
from frcnn.engine.checkpoint import (
    FORMAT,
    random_state,
    read_training_state,
    save_checkpoint,
    set_random_state,
    to_plain,
)
from frcnn.engine.evaluate import evaluate, match_classes
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.engine.log import TrainingLog
from frcnn.engine.not_finite import not_finite
from frcnn.engine.processes import Processes, started_processes
from frcnn.engine.schedule import learning_rate, with_epochs
from frcnn.structures import Batch
from frcnn.zoo.build import build
from frcnn.zoo.checkpoint import CheckpointError
from frcnn.zoo.recipes import recipe as recipe_named

CONTINUE, STOP, NOT_FINITE = 0, 1, 2


@dataclass(frozen=True)
class TrainResult:
    """What training left behind.

    checkpoint: last.pth, from which training resumes; best: best.pth, the weights of the epoch with the best
    validation AP (None without a validation set). metrics: of the last evaluation; history: of all of them.
    """

    work_dir: Path
    checkpoint: Path
    best: Path | None
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    recipe: Recipe | str,
    train_annotations: str | Path,
    train_images: str | Path,
    val_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
    *,
    work_dir: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    seed: int = 0,
    device: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    weights: str | Path | None = None,
    reinit_heads: bool = False,
    resume: bool = False,
    eval_every: int = 1,
    save_every: int = 1000,
    log_every: int = 50,
) -> TrainResult:
    """Train a recipe on a COCO data set; under torchrun, one process per device.

    The classes are the data set's, whatever number the recipe names. `epochs` overrides the recipe's (its
    decay epochs move in proportion), `batch_size` its images per process (the learning rate follows
    linearly).

    Training starts from the ImageNet backbone that the recipe names (downloaded once), from random weights
    where it names none, or from `weights`: a checkpoint's path, "coco" for the recipe's published one, or
    "random" (which warns where a frozen backbone would never learn).
    `reinit_heads` leaves out that checkpoint's class and box layer, to train other classes.

    `work_dir` (default work_dirs/<recipe>) receives last.pth (every epoch and every `save_every` steps),
    best.pth (best validation AP), log.jsonl, recipe.json and tensorboard/. `resume` continues from last.pth;
    on a CPU the weights end up the same, bit for bit, as without the interruption. Ctrl-C finishes the step
    and saves.

    Raises DatasetError, CheckpointError, NonFiniteLoss, Interrupted.
    """
    if isinstance(recipe, str):
        recipe = recipe_named(recipe)
    schedule = recipe.schedule if epochs is None else with_epochs(recipe.schedule, epochs)
    schedule = replace(schedule, images_per_process=batch_size or schedule.images_per_process)
    recipe = replace(recipe, schedule=schedule)
    if (val_annotations is None) != (val_images is None):
        raise ValueError("validation needs both its annotation file and its image folder")
    with started_processes(device) as (processes, torch_device), StopRequest() as stop:
        run = _Run(
            recipe,
            load_coco(train_annotations, train_images).for_training(recipe.data.min_image_side),
            None if val_annotations is None else load_coco(val_annotations, val_images),
            Path(work_dir or Path("work_dirs") / recipe.name),
            _Settings(seed, precision, processes.count),
            workers,
            _Start(weights, reinit_heads, resume),
            torch_device,
            processes,
        )
        return run.loop(stop, eval_every, save_every, log_every)


@dataclass(frozen=True)
class _Settings:
    """Besides recipe and data, what a resumed run must have in common with the interrupted one."""

    seed: int
    precision: Literal["float32", "bfloat16"]
    processes: int


@dataclass(frozen=True)
class _Start:
    """What training starts from."""

    weights: str | Path | None
    reinit_heads: bool
    resume: bool


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: CocoDataset,
        validation: CocoDataset | None,
        work_dir: Path,
        settings: _Settings,
        workers: int,
        begin: _Start,
        device: torch.device,
        processes: Processes,
    ):
        self.recipe = replace(recipe, model=replace(recipe.model, num_classes=len(dataset.class_names)))
        self.dataset, self.validation = dataset, validation
        self.settings, self.workers = settings, workers
        self.device, self.processes = device, processes
        self.work_dir = work_dir
        self.last, self.best = work_dir / "last.pth", work_dir / "best.pth"
        self.history: list[dict[str, float]] = []
        self.start = 0
        self._check_work_dir(begin.resume)

        _seed(settings.seed)
        weights = begin.weights
        if weights is None:
            weights = "random" if recipe.model.backbone.pretrained is None else "imagenet"
        self.model = build(
            self.recipe,
            weights=None if begin.resume else weights,
            class_names=dataset.class_names,
            device=device,
            reinit_heads=begin.reinit_heads and not begin.resume,
        ).to(memory_format=torch.channels_last)
        self.model.train()
        if validation is not None:
            match_classes(self.model, validation)
        schedule = self.recipe.schedule
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(
            trainable, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        _seed(settings.seed + processes.rank)
        if begin.resume:
            self._resume()
        self.distributed: nn.Module = self.model
        if processes.count > 1:
            self.distributed = DistributedDataParallel(
                self.model, device_ids=[device.index] if device.type == "cuda" else None
            )
        self.batches = TrainingBatches(
            dataset.widths >= dataset.heights,
            schedule.images_per_process,
            schedule.epochs,
            settings.seed,
            processes.rank,
            processes.count,
            self.start,
        )

    def loop(self, stop: StopRequest, eval_every: int, save_every: int, log_every: int) -> TrainResult:
        steps_per_epoch = self.batches.steps_per_epoch
        total = self.recipe.schedule.epochs * steps_per_epoch
        log = TrainingLog(self.work_dir, self.start, total, steps_per_epoch, self.processes.first)
        self._introduce(log)
        pin_memory = self.device.type == "cuda"
        loader = training_loader(self.dataset, self.recipe.data, self.batches, self.workers, pin_memory)
        batches = iter(loader)
        iteration = self.start
        try:
            while True:
                epoch, step = divmod(iteration, steps_per_epoch)
                if step == 0 and epoch > 0 and (epoch % eval_every == 0 or iteration == total):
                    self._evaluate(epoch, iteration, log, stop)
                if iteration == total:
                    break
                started = time.perf_counter()
                batch, indices = next(batches)
                data_time = time.perf_counter() - started
                lr = self._learning_rate(iteration)
                values, stopping = self._step(iteration, lr, batch, indices, stop)
                values |= {"time": time.perf_counter() - started, "data_time": data_time}
                log.step(iteration, lr, values, self.device)
                iteration += 1
                if iteration % steps_per_epoch % log_every == 0 or iteration % steps_per_epoch == 0:
                    log.write(iteration - 1, lr, self.device)
                if stopping:
                    self._save(iteration)
                    raise self._interrupted(iteration, total)
                if iteration % steps_per_epoch == 0 or iteration % save_every == 0:
                    self._save(iteration)
        finally:
            log.close()
        best = self.best if self.validation is not None else None
        return TrainResult(
            self.work_dir, self.last, best, self.history[-1] if self.history else {}, self.history
        )

    def _step(
        self, iteration: int, lr: float, batch: Batch, indices: tuple[int, ...], stop: StopRequest
    ) -> tuple[dict[str, float], bool]:
        """One SGD step; returns the losses and whether to stop after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        on_device = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            losses, accuracy = self.distributed(on_device, with_accuracy=True)
        loss = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = self._gradient_norm()

        # One transfer for everything that is looked at: each would wait for the device on its own.
        watched = {**losses, "acc": accuracy, "loss": loss, "grad_norm": grad_norm}
        numbers = torch.stack(
            [torch.as_tensor(v, device=self.device).detach().float() for v in watched.values()]
        )
        values = dict(zip(watched, numbers.tolist(), strict=True))
        wanted = CONTINUE
        if not all(map(math.isfinite, values.values())):
            wanted = NOT_FINITE
        elif stop.requested:
            wanted = STOP
        verdict = self.processes.highest(wanted, self.device)
        if verdict == NOT_FINITE:
            images = [(self.dataset.image_path(i), int(self.dataset.image_ids[i])) for i in indices]
            suffix = f"_process{self.processes.rank}" if self.processes.count > 1 else ""
            file = self.work_dir / f"not_finite{suffix}.json"
            raise not_finite(file, iteration, lr, values, images, batch, self.model)
        self.optimizer.step()
        return values, verdict == STOP

    def _gradient_norm(self) -> Tensor:
        gradients = [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        limit = self.recipe.schedule.clip_grad_norm
        if limit is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def _learning_rate(self, iteration: int) -> float:
        schedule = self.recipe.schedule
        global_batch = schedule.images_per_process * self.processes.count
        return learning_rate(iteration, self.batches.steps_per_epoch, global_batch, schedule)

    def _evaluate(self, epoch: int, iteration: int, log: TrainingLog, stop: StopRequest) -> None:
        if self.validation is None or any(entry["epoch"] == epoch for entry in self.history):
            return
        try:
            with stop.at_once():
                result = evaluate(
                    self.model,
                    self.validation,
                    batch_size=self.recipe.schedule.images_per_process,
                    workers=self.workers,
                )
        except KeyboardInterrupt:
            total = self.recipe.schedule.epochs * self.batches.steps_per_epoch
            raise self._interrupted(iteration, total) from None
        log.validation(iteration, self._learning_rate(iteration - 1), result.metrics)
        previous = max((entry["bbox_mAP"] for entry in self.history), default=-math.inf)
        self.history.append({"epoch": epoch, **result.metrics})
        self._save(iteration, best=result.metrics["bbox_mAP"] > previous)

    def _save(self, iteration: int, best: bool = False) -> None:
        states = self.processes.gather(random_state())
        if not self.processes.first:
            return
        content = {
            "state_dict": self.model.state_dict(),
            "meta": {
                "recipe": to_plain(self.recipe),
                "dataset_meta": {"classes": list(self.dataset.class_names)},
                "epoch": iteration // self.batches.steps_per_epoch,
                "iter": iteration,
            },
        }
        if best:
            save_checkpoint(self.best, content)
        training = {
            "format": FORMAT,
            "settings": dataclasses.asdict(self.settings),
            "data": self._fingerprint(),
            "random_states": states,
            "history": self.history,
        }
        save_checkpoint(
            self.last, {**content, "optimizer": self.optimizer.state_dict(), "training": training}
        )

    def _resume(self) -> None:
        checkpoint = read_training_state(self.last)
        training = checkpoint["training"]
        differing = _differences(
            {
                "recipe": checkpoint["meta"]["recipe"],
                "settings": training["settings"],
                "data": training["data"],
            },
            {
                "recipe": to_plain(self.recipe),
                "settings": dataclasses.asdict(self.settings),
                "data": self._fingerprint(),
            },
        )
        if differing:
            raise CheckpointError(
                f"{self.last} comes from a run with other settings, so it cannot be continued exactly: "
                + "; ".join(differing)
                + ". Resume with the settings of that run, or train anew in another work_dir with weights="
                + str(self.last)
            )
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        set_random_state(training["random_states"][self.processes.rank])
        self.history = training["history"]
        self.start = checkpoint["meta"]["iter"]

    def _fingerprint(self) -> dict:
        """What tells one training set from another."""
        return {
            "images": len(self.dataset),
            "boxes": len(self.dataset.boxes),
            "image_id_sum": int(self.dataset.image_ids.sum()),
            "box_sum": float(self.dataset.boxes.sum(dtype=np.float64)),
            "classes": list(self.dataset.class_names),
        }

    def _check_work_dir(self, resume: bool) -> None:
        if resume and not self.last.is_file():
            raise CheckpointError(f"nothing to resume: {self.last} does not exist")
        if not resume and self.last.exists():
            raise CheckpointError(
                f"{self.last} exists: resume that run, give another work_dir, or delete it to start over"
            )
        if self.processes.first:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            (self.work_dir / "recipe.json").write_text(json.dumps(to_plain(self.recipe), indent=2) + "\n")

    def _introduce(self, log: TrainingLog) -> None:
        log.say(f"training set   {self.dataset.summary()}")
        if self.validation is not None:
            log.say(f"validation set {self.validation.summary()}")
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        schedule = self.recipe.schedule
        log.say(
            f"{self.recipe.name}: {millions:.1f} M trainable parameters, "
            f"{len(self.dataset.class_names)} classes, {schedule.epochs} epochs of "
            f"{self.batches.steps_per_epoch} steps of {schedule.images_per_process} images on "
            f"{self.processes.count} x {self.device}, {self.settings.precision}; work_dir {self.work_dir}"
        )
        if self.start:
            log.say(f"resuming after step {self.start}")

    def _interrupted(self, iteration: int, total: int) -> Interrupted:
        return Interrupted(f"stopped after step {iteration} of {total}; everything is in {self.last}")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _differences(was: dict, now: dict, path: str = "") -> list[str]:
    """'name: old -> new' for every leaf that differs."""
    lines = []
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{path}{name}.")
        elif old != new:
            lines.append(f"{path}{name} was {old}, is {new}")
    return lines
