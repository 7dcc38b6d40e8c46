"""A data set looked at before training: what cannot be used, what is probably wrong, what it holds.

Every image is decoded once. A finding has a level: an "error" spoils training or evaluation, or is left out
of them; a "warning" is for people to look at; a "note" says what the data set is like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

import frcnn_ops
from frcnn.config import Recipe
from frcnn.data.anchor_fit import best_ious, better
from frcnn.data.annotations import UNKNOWN_CATEGORIES, UNKNOWN_IMAGES, DatasetError
from frcnn.data.coco import CocoDataset
from frcnn.inference.hardware import available_cpus
from frcnn.inference.stream import prepared_ahead
from frcnn.preprocess import fit_size, padded
from frcnn.read_image import ImageError, read_header, read_image

Level = Literal["error", "warning", "note"]

MOST_EXAMPLES = 1000
"""Of one finding: what a report can hold."""
SAME_BOX = 0.95
"""IoU from which two boxes of an image are taken for the same one."""
FEW_BOXES = 10
"""A class with fewer is one that can hardly be learned, or measured."""
FLAT = 0.1
"""Share of an image's rows, from the bottom, that one color fills where a file was probably cut short."""
SMALL = 4.0
"""Pixels of the network's input, the stride of the finest level: objects below it leave hardly a trace."""


@dataclass(frozen=True)
class Example:
    """One case of a finding: the image ("" for none), what to say of it, and boxes x1, y1, x2, y2 in it."""

    image: str = ""
    text: str = ""
    boxes: tuple[tuple[float, ...], ...] = ()


@dataclass
class Finding:
    """Cases of one kind; examples are the first MOST_EXAMPLES of them."""

    level: Level
    name: str
    text: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(
        self, image: str = "", text: str = "", boxes: Sequence[Sequence[float]] | np.ndarray = ()
    ) -> None:
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            plain = tuple(tuple(round(float(number), 2) for number in box) for box in boxes)
            self.examples.append(Example(image, text, plain))


@dataclass(frozen=True)
class DatasetCheck:
    """What was found. classes: name -> boxes to train on."""

    annotations: str
    recipe: str
    images: int
    boxes: int
    classes: dict[str, int]
    findings: list[Finding]

    @property
    def errors(self) -> int:
        return sum(found.count for found in self.findings if found.level == "error")

    def to_json(self) -> dict[str, Any]:
        return {"errors": self.errors, **asdict(self)}

    def table(self, most: int = 3) -> str:
        """Lines for people: the worst first, each with its first examples."""
        lines = [f"{self.annotations}: {self.images} images, {self.boxes} boxes, {len(self.classes)} classes"]
        for found in self.findings:
            lines += ["", f"{found.level}: {found.text} ({found.count})"]
            for example in found.examples[:most]:
                lines.append("  " + ": ".join(filter(None, [example.image, example.text])))
            if found.examples and found.count > most:
                lines.append(f"  … {found.count - most} more")
        return "\n".join([*lines, "", f"{self.errors} errors" if self.errors else "no errors"])


def check(
    dataset: CocoDataset,
    recipe: Recipe,
    others: Sequence[CocoDataset] = (),
    progress: bool = True,
) -> DatasetCheck:
    """Look at every image and box of a data set.

    recipe: its sizes, anchors and filters are what boxes are held against.
    others: the other splits; an image that one of them holds too, by content, is an error.
    """
    findings = _Findings()
    seen = _look_at_images(dataset, findings, progress)
    _find_duplicates(dataset, seen, others, findings, progress)
    _check_annotations(dataset, findings)
    _check_boxes(dataset, findings)
    classes = _check_classes(dataset, findings)
    _check_sizes(dataset, recipe, findings)
    order = ("error", "warning", "note")
    return DatasetCheck(
        str(dataset.annotation_file),
        recipe.name,
        len(dataset),
        len(dataset.labels),
        classes,
        sorted(findings.values(), key=lambda found: order.index(found.level)),
    )


class _Findings(dict[str, Finding]):
    def of(self, level: Level, name: str, text: str) -> Finding:
        return self.setdefault(name, Finding(level, name, text))


# ---- images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """An image as it was found: what is wrong or special with it, each as (level, name, text, detail), and a
    hash of its pixels ("" if it has none)."""

    remarks: tuple[tuple[Level, str, str, str], ...]
    digest: str = ""


def _look_at_images(dataset: CocoDataset, findings: _Findings, progress: bool) -> list[str]:
    digests = []
    for index, seen in enumerate(_each_image(dataset, progress)):
        for level, name, text, detail in seen.remarks:
            findings.of(level, name, text).add(str(dataset.image_path(index)), detail)
        digests.append(seen.digest)
    return digests


def _each_image(dataset: CocoDataset, progress: bool) -> Iterator[_Seen]:
    threads = min(8, available_cpus())
    found = prepared_ahead(range(len(dataset)), partial(_look, dataset), threads, 2 * threads)
    yield from tqdm(found, "looking", len(dataset), False, unit="img", disable=None if progress else True)


def _look(dataset: CocoDataset, index: int) -> _Seen:
    path = dataset.image_path(index)
    try:
        header, pixels = read_header(path), read_image(path)
    except (ImageError, OSError) as error:
        text = "images that cannot be read; replace them or take them out"
        return _Seen((("error", "unreadable", text, str(error).removeprefix(f"{path} ")),))
    remarks: list[tuple[Level, str, str, str]] = []
    height, width = pixels.shape[:2]
    annotated = int(dataset.widths[index]), int(dataset.heights[index])
    if (width, height) != annotated:
        text = "images of another size than their annotations say, so that the boxes would not fit"
        remarks.append(("error", "size", text, f"{width}x{height}, not {annotated[0]}x{annotated[1]}"))
    if header.orientation != 1:
        text = (
            "images that EXIF data turn or mirror, as they will be here; see that the boxes were drawn so too"
        )
        remarks.append(("warning", "exif", text, f"orientation {header.orientation}"))
    if _flat_below(pixels):
        text = "images whose lower part is one color: perhaps a file that was cut short"
        remarks.append(("warning", "flat", text, ""))
    if header.bits > 8 or header.mode not in ("RGB", "L", "1", "npy"):
        text = "images that are converted to 8-bit color (rules: frcnn.read_image)"
        remarks.append(("note", "converted", text, f"{header.mode}, {header.bits} bits per channel"))
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16)
    return _Seen(tuple(remarks), digest.hexdigest())


def _flat_below(pixels: np.ndarray) -> bool:
    """Whether one color that is neither black nor white fills the lowest rows."""
    color = pixels[-1, 0]
    rows = max(8, int(len(pixels) * FLAT))
    return (
        rows < len(pixels) and 0 < color.max() and color.min() < 255 and bool((pixels[-rows:] == color).all())
    )


def _find_duplicates(
    dataset: CocoDataset,
    digests: list[str],
    others: Sequence[CocoDataset],
    findings: _Findings,
    progress: bool,
) -> None:
    first: dict[str, str] = {}
    for index, digest in enumerate(digests):
        path = str(dataset.image_path(index))
        if digest and (other := first.setdefault(digest, path)) != path:
            text = "images that the data set holds twice"
            findings.of("warning", "duplicates", text).add(path, f"the same as {other}")
    for other_split in others:
        for index, seen in enumerate(_each_image(other_split, progress)):
            if seen.digest in first:
                text = f"images that {other_split.annotation_file} holds too, so that its AP is too high"
                found = findings.of("error", f"leaked into {other_split.annotation_file}", text)
                found.add(first[seen.digest], f"the same as {other_split.image_path(index)}")


# ---- annotations -------------------------------------------------------------------------------------------


def _check_annotations(dataset: CocoDataset, findings: _Findings) -> None:
    """What reading has left out, and images without boxes."""
    for reason in (UNKNOWN_IMAGES, UNKNOWN_CATEGORIES):
        if count := dataset.report.counts.get(reason):
            found = findings.of("error", reason, f"{reason}, which are left out")
            for example in dataset.report.examples[reason]:
                found.add(text=example)
            found.count = count
    for index in np.flatnonzero(np.diff(dataset.box_offsets) == 0).tolist():
        text = "images without boxes; trained on, as background, with --data.keep-empty only"
        findings.of("note", "empty", text).add(str(dataset.image_path(index)))
    if crowd := int(dataset.crowd.sum()):
        text = "crowd regions (or difficult objects): not trained on, neither missed nor wrong in evaluation"
        findings.of("note", "crowd", text).count = crowd


def _rows_by_image(dataset: CocoDataset) -> Iterator[tuple[int, slice]]:
    for index in range(len(dataset)):
        if dataset.box_offsets[index] < dataset.box_offsets[index + 1]:
            yield index, slice(dataset.box_offsets[index], dataset.box_offsets[index + 1])


def _check_boxes(dataset: CocoDataset, findings: _Findings) -> None:
    for index, rows in _rows_by_image(dataset):
        path, xywh = str(dataset.image_path(index)), dataset.xywh[rows]
        names = [dataset.class_names[label] for label in dataset.labels[rows]]
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        size = np.array([dataset.widths[index], dataset.heights[index]])
        for row, box in enumerate(boxes):
            if kind := _wrong_shape(xywh[row], box, size, bool(dataset.trainable[rows][row])):
                findings.of(*kind).add(path, f"{names[row]} {_shown(box)}", [box])
        alike = frcnn_ops.box_iou(*[torch.from_numpy(boxes.astype(np.float32))] * 2).numpy() >= SAME_BOX
        for one, other in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            pair = boxes[[one, other]]
            if names[one] == names[other]:
                text = "objects that are annotated twice"
                findings.of("warning", "double", text).add(path, f"{names[one]} {_shown(pair[0])}", pair)
            else:
                text = "objects with two classes: one of them is wrong"
                said = f"{names[one]} and {names[other]} {_shown(pair[0])}"
                findings.of("warning", "two classes", text).add(path, said, pair)


def _wrong_shape(
    xywh: np.ndarray, box: np.ndarray, size: np.ndarray, trainable: bool
) -> tuple[Level, str, str] | None:
    if (xywh[2:] < 0).any():
        return "error", "inverted", "boxes whose width or height is negative, which are left out of training"
    if (box[:2] >= size).any() or (box[2:] <= 0).any():
        return "error", "outside", "boxes outside their image, which are left out of training"
    if not trainable:
        text = "boxes under one pixel wide or high, or without area, which are left out of training"
        return "warning", "degenerate", text
    if (box[:2] < -1).any() or (box[2:] > size + 1).any():
        return "warning", "beyond", "boxes that reach more than a pixel beyond their image"
    return None


def _shown(box: np.ndarray) -> str:
    return f"({', '.join(f'{number:.0f}' for number in box)})"


def _check_classes(dataset: CocoDataset, findings: _Findings) -> dict[str, int]:
    objects = dataset.labels[dataset.trainable & ~dataset.crowd]
    counts = np.bincount(objects, minlength=len(dataset.class_names)).tolist()
    classes = dict(zip(dataset.class_names, counts, strict=True))
    for name, count in classes.items():
        if count == 0:
            text = "classes without a box: they cost time and are never learned"
            findings.of("warning", "unused", text).add(text=name)
        elif count < FEW_BOXES:
            findings.of("warning", "rare", f"classes with fewer than {FEW_BOXES} boxes").add(
                text=f"{name} {count}"
            )
    return classes


# ---- against a recipe --------------------------------------------------------------------------------------


def _check_sizes(dataset: CocoDataset, recipe: Recipe, findings: _Findings) -> None:
    """What the recipe's filters leave out, and its anchors and maps against the boxes as the network sees
    them."""
    data, model = recipe.data, recipe.model
    try:
        dropped = dataset.for_training(data.min_image_side, data.keep_empty).report
        reason = f"images with a side under {data.min_image_side} px"
        if count := dropped.counts.get(reason):
            found = findings.of("warning", "small images", f"{reason}, which training leaves out")
            for example in dropped.examples[reason]:
                found.add(example)
            found.count = count
    except DatasetError as error:
        findings.of("error", "nothing to train on", "there is nothing to train on").add(text=str(error))
        return
    boxes, sizes, places = [], [], []
    for index, _ in _rows_by_image(dataset):
        own, _ = dataset.boxes_of(index)
        width, height = int(dataset.widths[index]), int(dataset.heights[index])
        fitted = fit_size(height, width, data.size)
        boxes.append(own * (np.array(fitted[::-1] * 2) / np.array([width, height] * 2)))
        sizes += [padded(fitted, data.pad_divisor)] * len(own)
        places += [(index, box) for box in own]
    seen = np.concatenate(boxes)
    ious = best_ious(seen, np.array(sizes), model)
    sides = (seen[:, 2:] - seen[:, :2]).min(1)
    unreached = ious < model.rpn.min_pos_iou
    if unreached.any():
        scales, ratios, left = better(seen, np.array(sizes), model)
        text = (
            f"boxes whose IoU with every anchor of {recipe.name} is under {model.rpn.min_pos_iou:g}, so that "
            "no anchor learns to propose them"
        )
        if (tuple(scales), tuple(ratios)) != (model.rpn.scales, model.rpn.ratios):
            text += (
                f"; --model.rpn.scales {_words(scales)} --model.rpn.ratios {_words(ratios)} leave "
                f"{left * len(seen):.0f} of them (other anchors need a new RPN: no published weights fit)"
            )
        _worst(dataset, places, ious, unreached, findings.of("warning", "anchors", text), "best IoU {:.2f}")
    text = f"boxes narrower than {SMALL:g} pixels at {data.size[0]}x{data.size[1]}: larger images would help"
    if (sides < SMALL).any():
        _worst(dataset, places, sides, sides < SMALL, findings.of("warning", "tiny", text), "{:.1f} pixels")
    edges = np.sqrt((seen[:, 2:] - seen[:, :2]).prod(1))
    low, middle, high = np.percentile(edges, [5, 50, 95])
    text = (
        f"boxes to train on; their sides at {data.size[0]}x{data.size[1]}, as square roots of areas: "
        f"{middle:.0f} pixels in the middle, nine in ten from {low:.0f} to {high:.0f}; "
        f"{(ious >= model.rpn.pos_iou).mean():.0%} have an anchor of IoU {model.rpn.pos_iou:g}"
    )
    findings.of("note", "sides", text).count = len(seen)


def _worst(
    dataset: CocoDataset, places: list, values: np.ndarray, chosen: np.ndarray, finding: Finding, said: str
) -> None:
    """Add the chosen boxes, the lowest values first."""
    by_value = sorted(np.flatnonzero(chosen).tolist(), key=values.__getitem__)
    for row in by_value:
        index, box = places[row]
        finding.add(str(dataset.image_path(index)), f"{_shown(box)}, {said.format(values[row])}", [box])


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
