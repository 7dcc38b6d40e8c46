"""The ranges of training's options, checked before any work."""

from __future__ import annotations

import math

from frcnn.checked import OptionError, check_whole
from frcnn.config import ScheduleConfig
from frcnn.data.coco import CocoDataset
from frcnn.engine.callbacks import Callback
from frcnn.inference.hardware import Precision, available_cpus, check_precision, resolve_device


def check_options(
    *,
    device: str | None,
    precision: Precision,
    mode: str,
    weights: object,
    reinit_heads: bool,
    files: dict[str, tuple[object, object, object]],
    val_losses: bool,
    schedule: ScheduleConfig,
    callbacks: object,
    max_bad_images: float,
    timeout: float,
    workers: int,
    seed: int,
    **at_least_one: int | None,
) -> None:
    """Raise OptionError, naming the parameter, its value and its range. None stands for a default."""
    for name, value in at_least_one.items():
        if value is not None:
            check_whole(name, value, 1)
    check_parallel("workers", workers, 0)
    check_whole("seed", seed, 0, 2**63 - 1)
    if not 0 <= max_bad_images <= 1:
        raise OptionError(f"max_bad_images={max_bad_images}: it is a share of the training images, 0 to 1")
    if not 0 < timeout < math.inf:
        raise OptionError(f"timeout={timeout}: it is a number of seconds above 0")
    if reinit_heads and weights in (None, "random", "imagenet"):
        raise OptionError(
            "reinit_heads=True leaves out a checkpoint's class and box layer, and there is no checkpoint: "
            "name one as weights=PATH"
        )
    for name, (dataset, of_boxes, images) in files.items():
        if bool(of_boxes) != bool(images):
            purpose = {"train": "training", "val": "validation"}[name]
            raise OptionError(
                f"{name}_annotations and {name}_images belong together: name both for {purpose}, or none"
            )
        if dataset is not None and of_boxes:
            raise OptionError(f"{name}={name} and {name}_annotations are two data sets: give one of them")
    if not any(files["train"]):
        raise OptionError("there is nothing to train on: name train_annotations and train_images, or train")
    for name, (dataset, _, _) in files.items():
        if not isinstance(dataset, (CocoDataset, type(None))):
            raise OptionError(
                f"{name}={type(dataset).__name__}: frcnn.load_dataset or frcnn.data.combine returns it"
            )
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(one, Callback) for one in callbacks):
        raise OptionError("callbacks are a list of objects of classes derived from frcnn.Callback")
    for field in ("patience", "ema"):
        if getattr(schedule, field) and not any(files["val"]):
            raise OptionError(
                f"schedule.{field} works on evaluations: name val_annotations and val_images, or leave it out"
            )
    if val_losses and not any(files["val"]):
        raise OptionError("val_losses=True needs a validation set: name val_annotations and val_images")
    check_precision(precision, resolve_device(device))
    if mode not in ("eager", "graph"):
        raise OptionError(f"unknown mode {mode!r}: choose one of eager, graph")
    if mode == "graph" and resolve_device(device).type != "cuda":
        raise OptionError("mode='graph' needs a GPU: CUDA graphs are what it is made of; leave it out")


def check_parallel(name: str, count: int, least: int) -> None:
    """Raise OptionError for fewer processes or threads than `least`, or more than this machine could bear."""
    check_whole(name, count, least, max(64, 4 * available_cpus()))
