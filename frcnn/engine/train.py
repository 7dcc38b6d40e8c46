"""Training: one plain loop.

A step's number (`iteration`, counted from 0 over all epochs) determines its images, their augmentation and
its learning rate. With the weights, the momentum and the random state it is all that resuming needs.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from frcnn.checked import OptionError
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import random_state, seed_everything
from frcnn.config import Recipe
from frcnn.data import CocoDataset, TrainingBatches, load_dataset, running, training_loader
from frcnn.data.loader import BadImage
from frcnn.engine.bad_images import BadImages
from frcnn.engine.distributed import Processes, started_processes
from frcnn.engine.evaluate import evaluate, match_classes
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.engine.log import TrainingLog
from frcnn.engine.not_finite import not_finite
from frcnn.engine.options import check_options
from frcnn.engine.run_folder import Mode, RunFolder, RunState, Settings, TrainResult, folder_of
from frcnn.engine.schedule import learning_rate, with_epochs
from frcnn.engine.step import Learner
from frcnn.engine.step_graph import StepGraphs
from frcnn.engine.unread import Step, UnreadSteps
from frcnn.engine.validation_loss import ValidationLosses
from frcnn.files import check_keeps
from frcnn.inference.hardware import Precision
from frcnn.structures import Batch
from frcnn.zoo.build import build
from frcnn.zoo.recipes import recipe as recipe_named

CONTINUE, STOP, BROKEN = 0, 1, 2


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
    precision: Precision = "float32",
    mode: Mode = "eager",
    weights: str | Path | None = None,
    reinit_heads: bool = False,
    resume: bool = False,
    eval_every: int = 1,
    val_losses: bool = False,
    save_every: int = 1000,
    log_every: int = 50,
    timeout: float = 600.0,
    max_bad_images: float = 0.01,
) -> TrainResult:
    """Train a recipe on a COCO data set; under torchrun, one process per device.

    The classes are the data set's, whatever number the recipe names. `epochs` overrides the recipe's (its
    decay epochs move in proportion), `batch_size` its images per process (the learning rate follows
    linearly).

    Training starts from the ImageNet backbone that the recipe names (downloaded once), from random weights
    where it names none, or from `weights`: a checkpoint's path, "coco" for the recipe's published one, or
    "random" (which warns where a frozen backbone would never learn).
    `reinit_heads` leaves out that checkpoint's class and box layer, to train other classes.

    `precision` is what convolutions and matrix products are computed in. "float32" is that on a GPU too;
    "tf32" rounds their factors to 10 bits there. Weights stay float32, and in "float16" the loss is scaled as
    torch.amp.GradScaler does.

    `mode` "graph" runs each step as one CUDA graph (`StepGraphs`), on one GPU, with some more padding.

    `work_dir` (default work_dirs/<recipe>) receives last.pth (every epoch and every `save_every` steps),
    best.pth (best validation AP), log.jsonl, recipe.json and tensorboard/. `val_losses` also logs the losses
    of the validation set (val_loss, val_loss_cls, …; see `evaluate`), which takes a second forward pass of
    its images and changes nothing else. `resume` continues from last.pth; on a CPU the weights end up the
    same, bit for bit, as without the interruption, given the same number of torch's threads (a different
    number is reported).

    Ctrl-C and SIGTERM, to the process, its group or torchrun, finish the step and save (an evaluation is cut
    short); a second one, two seconds or more later, ends the process at once.

    An image that cannot be used (unreadable, gone, of another size than the annotations say) is replaced by
    the next one of the data set, named in the log once and listed at the end. `max_bad_images` is the share
    of the training images for which this holds (at least one image unless it is 0): past it training saves
    and raises DatasetError. Under torchrun a process that waits `timeout` seconds for another gives up.

    Raises OptionError on an option out of its range, DatasetError, CheckpointError, NonFiniteLoss,
    Interrupted; ValueError where `work_dir` would receive a file that is read, such as the weights; OSError
    where a file cannot be written; ChildProcessError where a worker dies; TimeoutError and ConnectionError
    where another process hangs or ends.
    """
    if isinstance(recipe, str):
        named, recipe = recipe, recipe_named(recipe)
        if not resume:
            check_keeps([named], folder_of(work_dir, recipe) / "recipe.json")
    check_options(
        device=device,
        precision=precision,
        mode=mode,
        weights=weights,
        reinit_heads=reinit_heads,
        validation=(val_annotations, val_images),
        val_losses=val_losses,
        max_bad_images=max_bad_images,
        timeout=timeout,
        workers=workers,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        eval_every=eval_every,
        save_every=save_every,
        log_every=log_every,
    )
    schedule = recipe.schedule if epochs is None else with_epochs(recipe.schedule, epochs)
    schedule = replace(schedule, images_per_process=batch_size or schedule.images_per_process)
    recipe = replace(recipe, schedule=schedule)
    with started_processes(device, timeout) as (processes, torch_device), StopRequest() as stop:
        if mode == "graph" and processes.count > 1:
            raise OptionError("mode='graph' is for one process; leave it out under torchrun")
        try:
            with stop.at_once():
                run = _Run(
                    recipe,
                    load_dataset(train_annotations, train_images).for_training(
                        recipe.data.min_image_side, recipe.data.keep_empty
                    ),
                    None
                    if val_annotations is None or val_images is None
                    else load_dataset(val_annotations, val_images),
                    val_losses,
                    folder_of(work_dir, recipe),
                    Settings(seed, precision, mode, processes.count),
                    workers,
                    max_bad_images,
                    _Start(weights, reinit_heads, resume),
                    torch_device,
                    processes,
                )
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped before the first step of this run", stop.number, resumable=resume
            ) from None
        try:
            return run.loop(stop, eval_every, save_every, log_every)
        except (ConnectionError, TimeoutError) as error:
            raise type(error)(f"{error}. {run.how_to_go_on()}") from None


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
        val_losses: bool,
        work_dir: Path,
        settings: Settings,
        workers: int,
        max_bad_images: float,
        begin: _Start,
        device: torch.device,
        processes: Processes,
    ):
        self.recipe = replace(recipe, model=replace(recipe.model, num_classes=len(dataset.class_names)))
        self.dataset, self.validation, self.val_losses = dataset, validation, val_losses
        self.settings, self.workers = settings, workers
        self.device, self.processes = device, processes
        self.folder = RunFolder(work_dir, self.recipe, settings, dataset)
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
        if validation is not None:
            category_ids = match_classes(self.model, validation)
            if val_losses:  # raises where there is no image to compute them on
                ValidationLosses(self.model, validation, category_ids)
        schedule = self.recipe.schedule
        seed_everything(settings.seed + processes.rank)
        self.learner = Learner(self.model, schedule, settings.precision, processes)
        bad_images = BadImages(dataset, max_bad_images)
        self.state = RunState(self.model, self.learner.optimizer, bad_images, self.learner.scale)
        self.notes = self.folder.resume(self.state, processes.rank) if begin.resume else []
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
        )
        self.total = schedule.epochs * self.batches.steps_per_epoch
        if self.state.steps > self.total:
            raise CheckpointError(
                f"{self.folder.last}: it is at step {self.state.steps} of {self.total}; train anew"
            )
        if processes.first:
            self.folder.prepare(begin.resume)

    def loop(self, stop: StopRequest, eval_every: int, save_every: int, log_every: int) -> TrainResult:
        steps_per_epoch = self.batches.steps_per_epoch
        iteration = self.state.steps
        evaluated = [entry["epoch"] for entry in self.state.history]
        steps = self.total, steps_per_epoch
        log = TrainingLog(self.folder.path, iteration, *steps, self.processes.first, evaluated)
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
                if iteration == self.total:
                    break
                started = time.perf_counter()
                batch, indices, bad = next(batches)
                data_time = time.perf_counter() - started
                if self._stops_before(iteration, bad, log, stop):
                    self._save(iteration, log)
                    raise self._interrupted(iteration, stop)
                lr = self._learning_rate(iteration)
                self._learn(iteration, lr, batch, indices)
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

    def _learn(self, iteration: int, lr: float, batch: Batch, indices: tuple[int, ...]) -> None:
        """Give one step to the device."""
        with self.processes.waiting(f"the gradients of step {iteration + 1}"):
            numbers = self.step(batch.to(self.device, non_blocking=True), lr)
        images = [(self.dataset.image_path(i), int(self.dataset.image_ids[i])) for i in indices]
        self.unread.add(Step(iteration, lr, numbers, images, batch.sizes, batch.boxes, batch.labels))

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
        global_batch = schedule.images_per_process * self.processes.count
        return learning_rate(iteration, self.batches.steps_per_epoch, global_batch, schedule)

    def _evaluate(self, epoch: int, iteration: int, log: TrainingLog, stop: StopRequest) -> None:
        if self.validation is None or any(entry["epoch"] == epoch for entry in self.state.history):
            return
        self.processes.share_buffers(self.model)  # what is evaluated must be what is saved
        try:
            result = evaluate(
                self.model,
                self.validation,
                batch_size=self.recipe.schedule.images_per_process,
                losses=self.val_losses,
                stop=lambda: stop.requested,
            )
        except KeyboardInterrupt:
            raise self._interrupted(iteration, stop) from None
        if result.failed:
            log.say(result.failures())
        metrics = result.metrics | {f"val_{name}": value for name, value in result.losses.items()}
        log.validation(iteration, self._learning_rate(iteration - 1), metrics)
        previous = max((entry["bbox_mAP"] for entry in self.state.history), default=-math.inf)
        self.state.history.append({"epoch": epoch, **metrics})
        self._save(iteration, log, best=metrics["bbox_mAP"] > previous)

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
            log.say(f"validation set {self.validation.summary()}")
        millions = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        schedule = self.recipe.schedule
        log.say(
            f"{self.recipe.name}: {millions:.1f} M trainable parameters, "
            f"{len(self.dataset.class_names)} classes, {schedule.epochs} epochs of "
            f"{self.batches.steps_per_epoch} steps of {schedule.images_per_process} images on "
            f"{self.processes.count} x {self.device}, {self.settings.precision}; work_dir {self.folder.path}"
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
