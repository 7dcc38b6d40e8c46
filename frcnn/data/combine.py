"""Data sets made of others: several as one, and those that a program has in memory or computes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from frcnn.as_pixels import as_pixels
from frcnn.data.annotations import AnnotatedImage, DatasetError, Report, coco_content, read_annotations
from frcnn.data.coco import CocoDataset, load_dataset
from frcnn.read_image import ImageError


class Samples(Protocol):
    """A map-style data set: torch.utils.data.Dataset, a list, …"""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class FromParts:
    """Where the images of several data sets are, by their number among all of them."""

    parts: tuple[CocoDataset, ...]
    starts: tuple[int, ...]
    """The number of each one's first image."""

    def path(self, row: int) -> Path:
        part = bisect_right(self.starts, row) - 1
        return self.parts[part].image_path(row - self.starts[part])

    def read(self, row: int, at_least: tuple[int, int] | None = None) -> np.ndarray:
        part = bisect_right(self.starts, row) - 1
        return self.parts[part].read(row - self.starts[part], at_least)

    def files(self) -> Iterator[Path]:
        for part in self.parts:
            yield from part.files()


@dataclass(frozen=True, eq=False)
class FromSamples:
    """The images of a map-style data set."""

    samples: Samples
    rgb: bool
    name: str
    channels: int

    def path(self, row: int) -> Path:
        """What messages call it."""
        return Path(f"{self.name}[{row}]")

    def read(self, row: int, at_least: tuple[int, int] | None = None) -> np.ndarray:
        return as_pixels(self.samples[row][0], self.channels, self.rgb)

    def files(self) -> Iterator[Path]:
        return iter(())


def load_datasets(annotations: Sequence[str | Path], images: Sequence[str | Path]) -> CocoDataset:
    """`load_dataset` of each file, concatenated. images: a folder for each, or one for all."""
    if len(images) not in (1, len(annotations)):
        raise DatasetError(
            f"{len(images)} folders of images for {len(annotations)} annotation files: give one for each, "
            "or one for all"
        )
    folders = list(images) * (len(annotations) // len(images))
    datasets = [load_dataset(*pair) for pair in zip(annotations, folders, strict=True)]
    return datasets[0] if len(datasets) == 1 else concatenate(datasets)


def concatenate(datasets: Sequence[CocoDataset]) -> CocoDataset:
    """Several data sets as one, image after image; their classes are matched by name.

    Where one lacks a class of another, its images teach that the class is not there. Ids of images count
    anew. Raises DatasetError without any data set.
    """
    if not datasets:
        raise DatasetError("there is no data set to concatenate")
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.class_names))
    labels, offsets, report = [], [np.zeros(1, dtype=np.int64)], Report()
    for dataset in datasets:
        of_part = np.array([names.index(name) for name in dataset.class_names])
        labels.append(of_part[dataset.labels])
        offsets.append(dataset.box_offsets[1:] + offsets[-1][-1])
        report.extend(dataset.report)
    joined = {
        field: np.concatenate([getattr(dataset, field) for dataset in datasets])
        for field in ("widths", "heights", "xywh", "areas", "crowd", "trainable")
    }
    *starts, count = accumulate(map(len, datasets), initial=0)
    source = FromParts(tuple(datasets), tuple(starts))
    return CocoDataset(
        annotation_file=Path(" + ".join(str(dataset.annotation_file) for dataset in datasets)),
        image_folder=Path(),
        class_names=tuple(names),
        category_ids=tuple(range(1, len(names) + 1)),
        image_ids=np.arange(count),
        names=np.zeros(0, dtype=np.uint8),
        name_offsets=np.zeros(count + 1, dtype=np.int64),
        labels=np.concatenate(labels),
        box_offsets=np.concatenate(offsets),
        report=report,
        source=source,
        rows=np.arange(count),
        **joined,
    )


def from_samples(
    samples: Samples,
    class_names: Sequence[str],
    rgb: bool = False,
    name: str = "samples",
    channels: int = 3,
) -> CocoDataset:
    """A map-style data set as one to train and evaluate on: each item an (image, boxes, labels) or, as
    torchvision has it, (image, {"boxes": …, "labels": …}).

    image: what `predict` takes; arrays and tensors are BGR, or RGB with `rgb`; of other than three channels
    as many as `channels`. boxes: (x1, y1, x2, y2) [G, 4] in its pixels; labels: [G], places in class_names.

    Every item is read once here, for its size and boxes, which stay in memory, and again when its image is
    trained on; workers get a copy of `samples`. An item must have the same image and boxes each time.

    Raises DatasetError, which names the item, where it is none of this.
    """

    def read(row: int) -> AnnotatedImage:
        where = f"{name}[{row}]"
        try:
            item = samples[row]
        except Exception as error:
            raise DatasetError(f"{where}: {type(error).__name__}: {error}") from error
        image, boxes, labels = _item(item, where)
        try:
            height, width = as_pixels(image, channels, rgb).shape[:2]
        except (ImageError, TypeError, OSError) as error:
            raise DatasetError(f"{where}: {error}") from None
        if (boxes.ndim, labels.ndim) != (2, 1) or boxes.shape != (len(labels), 4):
            raise DatasetError(
                f"{where}: boxes are [G, 4], labels [G]; got {list(boxes.shape)} and {list(labels.shape)}"
            )
        annotations = []
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label not in range(len(class_names)):
                raise DatasetError(f"{where}: label {label} is none of {len(class_names)} classes")
            annotations.append((where, label, [x1, y1, x2 - x1, y2 - y1], False))
        return str(row), (width, height), annotations

    content = coco_content(enumerate(class_names), map(read, range(len(samples))), first=0)
    dataset = CocoDataset.of(Path(name), Path(), read_annotations(Path(name), content))
    return replace(dataset, source=FromSamples(samples, rgb, name, channels), rows=np.arange(len(dataset)))


def _item(item: Any, where: str) -> tuple[Any, np.ndarray, np.ndarray]:
    try:
        image, *rest = item
        boxes, labels = (rest[0]["boxes"], rest[0]["labels"]) if isinstance(rest[0], dict) else rest
    except (TypeError, ValueError, LookupError):
        raise DatasetError(
            f'{where}: an item is (image, boxes, labels) or (image, {{"boxes": …, "labels": …}})'
        ) from None
    numbers = []
    for kind, value in (("boxes", boxes), ("labels", labels)):
        try:
            found = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            numbers.append(found.astype(float, casting="same_kind") if found.size else found.astype(float))
        except (TypeError, ValueError):
            raise DatasetError(f"{where}: {kind} are real numbers, one shape for all of them") from None
    return image, numbers[0].reshape(-1, 4) if numbers[0].size == 0 else numbers[0], numbers[1]
