"""`frcnn.train`: its options, and the run that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from frcnn.checked import OptionError
from frcnn.config import Recipe
from frcnn.data.coco import CocoDataset
from frcnn.data.combine import load_datasets
from frcnn.engine.callbacks import Callback
from frcnn.engine.distributed import started_processes
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.engine.options import check_options
from frcnn.engine.run import Start, TrainingRun
from frcnn.engine.run_folder import Mode, Settings, TrainResult, folder_of
from frcnn.engine.schedule import with_epochs
from frcnn.files import check_keeps
from frcnn.inference.hardware import Precision
from frcnn.zoo.recipes import recipe as recipe_named

Paths = str | Path | Sequence[str | Path] | None


def train(
    recipe: Recipe | str,
    train_annotations: Paths = None,
    train_images: Paths = None,
    val_annotations: Paths = None,
    val_images: Paths = None,
    *,
    train: CocoDataset | None = None,
    val: CocoDataset | None = None,
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
    resume_or_start: bool = False,
    eval_every: int = 1,
    val_losses: bool = False,
    save_every: int = 1000,
    log_every: int = 50,
    timeout: float = 600.0,
    max_bad_images: float = 0.01,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a recipe on a data set; under torchrun, one process per device.

    The data are the annotations and the folder of their images, as `frcnn.load_dataset` reads them, or
    several of each, which are concatenated; or `train` and `val`, data sets that it has read, or that
    `frcnn.data.combine` has made of others or of any map-style data set.
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
    `callbacks` are told of steps, epochs and evaluations.

    `work_dir` (default work_dirs/<recipe>) receives last.pth (every epoch and every `save_every` steps),
    best.pth (best validation AP), log.jsonl, recipe.json and tensorboard/. `val_losses` also logs the losses
    of the validation set (val_loss, val_loss_cls, …; see `evaluate`), which takes a second forward pass of
    its images and changes nothing else. `resume` continues from last.pth; on a CPU the weights end up the
    same, bit for bit, as without the interruption, given the same number of torch's threads and of processes
    (a different number is reported). `resume_or_start` resumes where there is a last.pth and starts where
    there is none, for schedulers that run the same command again.

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
        if not (resume or resume_or_start):
            check_keeps([named], folder_of(work_dir, recipe) / "recipe.json")
    check_options(
        device=device,
        precision=precision,
        mode=mode,
        weights=weights,
        reinit_heads=reinit_heads,
        files={
            "train": (train, train_annotations, train_images),
            "val": (val, val_annotations, val_images),
        },
        val_losses=val_losses,
        schedule=recipe.schedule,
        callbacks=callbacks,
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
        if mode == "graph" and (processes.count > 1 or schedule.accumulate > 1):
            raise OptionError("mode='graph' is for one process and one batch a step; leave it out here")
        if resume_or_start:  # agreed upon, as a shared folder may show a new file to one host before others
            there = (folder_of(work_dir, recipe) / "last.pth").exists()
            resume = bool(processes.highest([resume or there], "whether there is a run to resume")[0])
        try:
            with stop.at_once():
                run = TrainingRun(
                    recipe,
                    _read(train, train_annotations, train_images).for_training(
                        recipe.data.min_image_side, recipe.data.keep_empty
                    ),
                    None if val is None and not val_annotations else _read(val, val_annotations, val_images),
                    val_losses,
                    folder_of(work_dir, recipe),
                    Settings(seed, precision, mode, schedule.accumulate * processes.count),
                    workers,
                    max_bad_images,
                    Start(weights, reinit_heads, resume),
                    torch_device,
                    processes,
                )
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped before the first step of this run", stop.number, resumable=resume
            ) from None
        try:
            result = run.loop(stop, eval_every, save_every, log_every, callbacks)
        except (ConnectionError, TimeoutError) as error:
            raise type(error)(f"{error}. {run.how_to_go_on()}") from None
        for callback in callbacks if processes.first else ():
            callback.end(result)
        return result


def _read(dataset: CocoDataset | None, annotations: Paths, images: Paths) -> CocoDataset:
    return load_datasets(_listed(annotations), _listed(images)) if dataset is None else dataset


def _listed(paths: Paths) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, (str, Path)) else paths or []
