"""A training run: what it consists of, and the loop over its steps.

A step's number (`iteration`, counted from 0 over all epochs) determines its images, their augmentation and
its learning rate. With the weights, the optimizer's state and the random state it is all that resuming needs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import random_state, seed_everything
from frcnn.config import Recipe
from frcnn.data import CocoDataset, TrainingBatches, running, training_loader
from frcnn.data.loader import BadImage
from frcnn.engine.bad_images import BadImages
from frcnn.engine.callbacks import Callback
from frcnn.engine.distributed import Processes, notes_on_restarts
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.engine.log import TrainingLog
from frcnn.engine.not_finite import not_finite
from frcnn.engine.run_folder import RunFolder, RunState, Settings, TrainResult
from frcnn.engine.schedule import learning_rate
from frcnn.engine.step import Learner
from frcnn.engine.step_graph import StepGraphs
from frcnn.engine.unread import Step, UnreadSteps
from frcnn.engine.validation import Validation
from frcnn.structures import Batch
from frcnn.zoo.build import build

CONTINUE, STOP, BROKEN = 0, 1, 2


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    weights: str | Path | None
    reinit_heads: bool
    resume: bool


class TrainingRun:
    """The state of one training run."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: CocoDataset,
        validation: CocoDataset | None,
        val_losses: bool,
        work_dir: Path,
        settings: Settings,
        workers: int,
        max_bad_images: float,
        begin: Start,
        device: torch.device,
        processes: Processes,
    ):
        self.recipe = replace(recipe, model=replace(recipe.model, num_classes=len(dataset.class_names)))
        self.dataset = dataset
        self.settings, self.workers = settings, workers
        self.device, self.processes = device, processes
        self.folder = RunFolder(work_dir, self.recipe, settings, dataset, processes)
        read = [begin.weights] if begin.weights else []
        self.folder.check(
            begin.resume, chain(read, dataset.files(), validation.files() if validation else ())
        )

        seed_everything(settings.seed)
        default = "random" if recipe.model.backbone.pretrained is None else "imagenet"
        weights = default if begin.weights is None else begin.weights
        self.model = build(
            self.recipe,
            weights=None if begin.resume else weights,
            class_names=dataset.class_names,
            device=device,
            reinit_heads=begin.reinit_heads and not begin.resume,
        ).train()
        convert_conv2d_weight_memory_format(self.model, torch.channels_last)
        schedule = self.recipe.schedule
        seed_everything(settings.seed + processes.rank)
        self.learner = Learner(self.model, schedule, settings.precision, processes)
        average = self.learner.average.model if self.learner.average else None
        bad_images = BadImages(dataset, max_bad_images)
        self.state = RunState(self.model, self.learner.optimizer, bad_images, self.learner.scale, average)
        self.validation: Validation | None = None
        if validation is not None:
            self.validation = Validation(
                average or self.model, validation, val_losses, schedule, self.state.history
            )
        self.notes = notes_on_restarts() + (self.folder.resume(self.state) if begin.resume else [])
        self.saved = self.state.steps
        if settings.mode == "graph":
            self.step = StepGraphs(self.model, self.learner).step
        else:
            self.step = partial(self.learner.step, processes.parallel(self.model, device))
        self.batches = TrainingBatches(
            dataset.widths >= dataset.heights,
            schedule.images_per_process,
            schedule.epochs,
            settings.seed,
            processes.rank,
            processes.count,
            self.state.steps,
            self.folder.settings.batches_per_step,
            dataset.shares(recipe.data.repeat_rare),
        )
        self.total = schedule.epochs * self.batches.steps_per_epoch
        if self.state.steps > self.total:
            raise CheckpointError(
                f"{self.folder.last}: it is at step {self.state.steps} of {self.total}; train anew"
            )
        if processes.first:
            self.folder.prepare(begin.resume)

    def loop(
        self,
        stop: StopRequest,
        eval_every: int,
        save_every: int,
        log_every: int,
        callbacks: Sequence[Callback],
    ) -> TrainResult:
        steps_per_epoch = self.batches.steps_per_epoch
        iteration = self.state.steps
        evaluated = [entry["epoch"] for entry in self.state.history]
        steps = self.total, steps_per_epoch
        log = TrainingLog(self.folder.path, iteration, *steps, self.processes.first, evaluated, callbacks)
        if self.state.log is not None:
            log.restore(self.state.log)
        self._introduce(log)
        self.unread = UnreadSteps(log, self.device)
        loader = training_loader(
            self.dataset,
            self.recipe.data,
            self.batches,
            self.workers,
            pin_memory=self.device.type == "cuda",
            max_bad_images=self.state.bad_images.share,
            with_crowd=self.recipe.model.ignore_iof > 0,
        )
        with contextlib.closing(log), running(loader) as batches:
            while True:
                epoch, step = divmod(iteration, steps_per_epoch)
                if step == 0 and epoch > 0 and (epoch % eval_every == 0 or iteration == self.total):
                    self._evaluate(epoch, iteration, log, stop)
                if iteration == self.total or (self.validation is not None and self.validation.is_over()):
                    break
                started = time.perf_counter()
                parts = [next(batches) for _ in range(self.batches.batches_of(iteration))]
                bad = [image for part in parts for image in part[2]]
                data_time = time.perf_counter() - started
                if self._stops_before(iteration, bad, log, stop):
                    self._save(iteration, log)
                    raise self._interrupted(iteration, stop)
                lr = self._learning_rate(iteration)
                weight = self.batches.weight(iteration)
                self._learn(iteration, lr, weight, [(batch, indices) for batch, indices, _ in parts])
                iteration += 1
                epoch_ends = iteration % steps_per_epoch == 0
                writes = epoch_ends or iteration % steps_per_epoch % log_every == 0
                if writes:
                    self._read_all()
                log.count({"time": time.perf_counter() - started, "data_time": data_time})
                if writes:
                    log.write(iteration - 1, lr, self.device)
                if epoch_ends or iteration % save_every == 0:
                    self._save(iteration, log)
            if self.state.bad_images.times:
                log.say(self.state.bad_images.summary())
        return TrainResult(
            self.folder.path,
            self.folder.last,
            self.folder.best if self.validation is not None else None,
            self.state.history[-1] if self.state.history else {},
            self.state.history,
            self.state.bad_images.counts(),
        )

    def _stops_before(self, iteration: int, bad: list[BadImage], log: TrainingLog, stop: StopRequest) -> bool:
        """Whether the processes, which decide it together, end training before a step."""
        self.unread.read()
        wanted = BROKEN if self.unread.broken else STOP if stop.requested else CONTINUE
        verdict, any_bad = self.processes.highest(
            [wanted, int(bool(bad))], f"the start of step {iteration + 1}"
        )
        if verdict == BROKEN:
            self._read_all()
        elif any_bad and verdict != STOP:
            self._count_bad(bad, iteration, log)
        return verdict == STOP

    def _learn(
        self, iteration: int, lr: float, weight: float, parts: list[tuple[Batch, tuple[int, ...]]]
    ) -> None:
        """Give one step to the device."""
        batches = [batch for batch, _ in parts]
        with self.processes.waiting(f"the gradients of step {iteration + 1}"):
            numbers = self.step([batch.to(self.device, non_blocking=True) for batch in batches], lr, weight)
        if self.learner.average is not None:
            self.learner.average.update(self.model)
        images = [
            (self.dataset.image_path(i), int(self.dataset.image_ids[i]))
            for _, indices in parts
            for i in indices
        ]
        sizes, boxes, labels = (
            tuple(chain.from_iterable(getattr(batch, field) for batch in batches))
            for field in ("sizes", "boxes", "labels")
        )
        self.unread.add(Step(iteration, lr, numbers, images, sizes, boxes, labels))

    def _read_all(self) -> None:
        """Wait for the numbers of all steps so far; raises NonFiniteLoss, in all processes or in none."""
        # It never ends if another process has hung or died before its part of a step: hosts meet here first.
        self.processes.highest([0], "the numbers of the last steps")
        self.unread.read(wait=True)
        if self.unread.broken is not None:
            raise not_finite(self.folder.not_finite(self.processes.rank), self.unread.broken, self.model)

    def _count_bad(self, bad: list[BadImage], iteration: int, log: TrainingLog) -> None:
        """Count the step's bad images, of all processes; past the limit save what was before the step."""
        for found in self.processes.gather(bad, f"the bad images of step {iteration + 1}"):
            for image in self.state.bad_images.add(found):
                log.bad_image(iteration + 1, self.dataset.image_path(image.index), image.reason)
        if self.state.bad_images.too_many:
            self._save(iteration, log)
            raise self.state.bad_images.error(f"The {iteration} steps before are in {self.folder.last}")

    def _learning_rate(self, iteration: int) -> float:
        schedule = self.recipe.schedule
        global_batch = schedule.images_per_process * self.batches.per_step
        return learning_rate(iteration, self.batches.steps_per_epoch, global_batch, schedule)

    def _evaluate(self, epoch: int, iteration: int, log: TrainingLog, stop: StopRequest) -> None:
        if self.validation is None or self.validation.has(epoch):
            return
        self.processes.share_buffers(self.validation.model)  # what is evaluated must be what is saved
        try:
            result, metrics, best = self.validation.evaluate(epoch, lambda: stop.requested)
        except KeyboardInterrupt:
            raise self._interrupted(iteration, stop) from None
        if result.failed:
            log.say(result.failures())
        log.validation(iteration, self._learning_rate(iteration - 1), metrics)
        self._save(iteration, log, best)
        if self.validation.is_over():
            log.say(f"no better AP in {self.validation.patience} evaluations: training ends here")

    def _save(self, iteration: int, log: TrainingLog, best: bool = False) -> None:
        self._read_all()
        random_states = self.processes.gather(random_state(), "the random state for the checkpoint")
        if self.processes.first:
            self.state.steps, self.state.log = iteration, log.state()
            self.folder.save(self.state, iteration // self.batches.steps_per_epoch, random_states, best)
        self.saved = iteration

    def how_to_go_on(self) -> str:
        """After an end without warning."""
        if not self.saved:
            return "Nothing has been saved yet: start again"
        return f"What came after step {self.saved} is not saved: go on from {self.folder.last} by resume=True"

    def _introduce(self, log: TrainingLog) -> None:
        log.say(f"training set   {self.dataset.summary()}")
        if self.validation is not None:
            log.say(f"validation set {self.validation.dataset.summary()}")
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        schedule = self.recipe.schedule
        log.say(
            f"{self.recipe.name}: {millions:.1f} M trainable parameters, "
            f"{len(self.dataset.class_names)} classes, {schedule.epochs} epochs of "
            f"{self.batches.steps_per_epoch} steps of "
            f"{schedule.images_per_process * self.batches.per_step} images on {self.processes.count} x "
            f"{self.device}, {self.settings.precision}; work_dir {self.folder.path}"
        )
        if self.state.steps:
            log.say(f"resuming after step {self.state.steps}")
        for note in self.notes:
            log.say(f"note: {note}")

    def _interrupted(self, iteration: int, stop: StopRequest) -> Interrupted:
        return Interrupted(
            f"stopped after step {iteration} of {self.total}; everything is in {self.folder.last}",
            stop.number,
        )
