"""Everything that is measured for one recipe: detection, stages, drift and training, beside the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.exported import path_of
from benchmarks.inputs import annotations
from benchmarks.measure import interleave, summary
from benchmarks.work import operations
from benchmarks.worker import Worker
from frcnn.config import Recipe

OURS, PEER, EXPORTED = "benchmarks.ours", "benchmarks.peer", "benchmarks.exported"
TRAINING_BATCH = 2


@dataclass(frozen=True)
class Conditions:
    """How detection and training are measured."""

    device: str
    precision: str
    mode: str
    threads: int
    size: tuple[int, int]
    """Height and width of the images."""
    images: Mapping[int, Path]
    """Batch size -> .npy file of uint8 BGR images; the training batch's is always there."""
    batches: tuple[int, ...]
    seconds: float
    """Time given to each interleaved measurement."""
    least: int = 5
    """The fewest rounds of a measurement."""
    train: bool = True
    coco: Path | None = None
    exports: tuple[str, ...] = ()
    """Formats whose files are measured beside."""


def measure_recipe(
    recipe: Recipe,
    conditions: Conditions,
    peers: Sequence[str],
    start: Callable[[str], Worker],
    weights: str | None,
    folder: Path,
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure one recipe; the result is what benchmarks/report.py renders.

    peers: the precisions to run torchvision's detector in; none where there is no torchvision. start: starts
    the process of a module (`OURS`, `PEER` or `EXPORTED`). weights: a checkpoint; None generates weights.
    folder: for files that the processes exchange. step: told what begins.
    """
    result: dict[str, Any] = {"name": recipe.name, "gflop": operations(recipe, *conditions.size) / 1e9}
    if recipe.model.backbone.style == "caffe":
        peers = ()  # torchvision has no backbone with the stride in the first 1x1
    with ExitStack() as processes:
        step("weights")
        plain = processes.enter_context(start(OURS))
        result |= _load(plain, recipe, weights, conditions)
        first = str(conditions.images[conditions.batches[0]])
        plain.call("take_images", file=first)
        if weights is None:
            plain.call("calibrate")
        own_weights, reference = str(folder / "weights.pt"), str(folder / "detections.pt")
        plain.call("save_weights", file=own_weights)
        plain.call("save_detections", file=reference)
        exported = {}
        for format in conditions.exports:
            step(f"writing {format}")
            exported[format] = path_of(folder, format)
            plain.call("export", format=format, file=str(exported[format]), batch=conditions.batches[0])

        fast = processes.enter_context(start(OURS))
        _load(fast, recipe, weights or own_weights, conditions)
        fast.call("optimize")
        subjects = {"ours": fast}
        for precision in peers:
            peer = processes.enter_context(start(PEER))
            described = load_peer(
                peer,
                recipe,
                own_weights,
                result["classes"],
                precision,
                conditions.size,
                conditions.device,
                conditions.threads,
            )
            subjects[f"{described['name']} {precision}"] = peer
        for format, file in exported.items():
            subjects[format] = processes.enter_context(start(EXPORTED))
            subjects[format].call("load", file=str(file), size=conditions.size, threads=conditions.threads)

        result["inference"] = []
        for batch in conditions.batches:
            step(f"batch {batch}")
            result["inference"].append(_inference(subjects, batch, conditions, "detect"))
        step("from images")
        result["from_images"] = _inference(subjects, conditions.batches[0], conditions, "predict")
        result["counts"] = {name: subject.call("counts") for name, subject in subjects.items()}
        result["drift"] = fast.call("drift", file=reference)
        if conditions.mode == "eager":
            step("stages")
            result |= fast.call("stages", repeats=20 if conditions.device == "cuda" else conditions.least)
        if conditions.coco is not None and weights is not None:
            step("box AP")
            result["box_ap"] = fast.call("box_ap", folder=str(conditions.coco))

        if conditions.train:
            step("training")
            fast.close()
            result["training"] = _training({**subjects, "ours": plain}, result["classes"], conditions)
    return result


def _load(worker: Worker, recipe: Recipe, weights: str | None, conditions: Conditions) -> dict[str, Any]:
    return worker.call(
        "load",
        recipe=recipe.name,
        weights=weights,
        size=conditions.size,
        device=conditions.device,
        precision=conditions.precision,
        mode=conditions.mode,
        threads=conditions.threads,
    )


def load_peer(
    worker: Worker,
    recipe: Recipe,
    weights: str,
    classes: int,
    precision: str,
    size: tuple[int, int],
    device: str,
    threads: int,
) -> dict[str, Any]:
    """Give torchvision's detector the recipe's backbone and our weights; returns what it says of itself."""
    backbone = recipe.model.backbone
    return worker.call(
        "load",
        weights=weights,
        depth=backbone.depth,
        groups=backbone.groups,
        base_width=backbone.base_width,
        num_classes=classes,
        size=size,
        device=device,
        precision=precision,
        threads=threads,
    )


def _inference(
    subjects: Mapping[str, Worker], batch: int, conditions: Conditions, call: str
) -> dict[str, Any]:
    for subject in subjects.values():
        subject.call("take_images", file=str(conditions.images[batch]))
    return _timings(subjects, batch, conditions, call, conditions.least)


def _training(subjects: Mapping[str, Worker], classes: int, conditions: Conditions) -> dict[str, Any]:
    boxes, labels = annotations(TRAINING_BATCH, *conditions.size, classes)
    for subject in subjects.values():
        subject.call("take_images", file=str(conditions.images[TRAINING_BATCH]))
        subject.call("start_training", boxes=boxes, labels=labels)
    return _timings(subjects, TRAINING_BATCH, conditions, "train_step", max(2, conditions.least // 2))


def _timings(
    subjects: Mapping[str, Worker], batch: int, conditions: Conditions, call: str, least: int
) -> dict[str, Any]:
    """Each subject's summary and peak memory; the first call, which warms up, counts in neither."""
    for subject in subjects.values():
        subject.call(call)
        subject.call("reset_peak")
    runs = {name: partial(subject.call, call) for name, subject in subjects.items()}
    taken = interleave(runs, conditions.seconds, least, warm_up=1)
    return {
        "batch": batch,
        **{
            name: summary(seconds, batch) | {"peak_bytes": subjects[name].call("peak_bytes")}
            for name, seconds in taken.items()
        },
    }
