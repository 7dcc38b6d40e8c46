"""A COCO data set, packed into a few arrays.

Shape shorthand: I images, N annotations of the whole data set, T of them good for training. Boxes are
(x1, y1, x2, y2) in pixels of the original image; the file stores (x, y, width, height).

The arrays matter: a list of a million Python objects is copied page by page into every worker process as
reference counts change, an array is not.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frcnn.data.annotations import (
    EXAMPLES,
    AnnotationFile,
    DatasetError,
    Report,
    read_annotations,
    shown,
)
from frcnn.data.cache import Packed, packed
from frcnn.data.formats import as_coco, files_beside
from frcnn.data.sampler import repeat_factors
from frcnn.read_image import read_image


class Source(Protocol):
    """Where images come from that are not the files of one folder, by their number there."""

    def path(self, row: int) -> Path: ...
    def read(self, row: int, at_least: tuple[int, int] | None = None) -> np.ndarray: ...
    def files(self) -> Iterator[Path]: ...


@dataclass(frozen=True)
class CocoDataset:
    """Images and boxes of one annotation file, or what `frcnn.data.combine` makes.

    class_names, category_ids: sorted by category id; a label is an index into both.
    image_ids, widths, heights: int64 [I].
    names, name_offsets: uint8 bytes of all file names, int64 [I + 1].
    Image after image, box_offsets int64 [I + 1]: xywh float64 [N, 4], as in the file; areas float64 [N], the
    file's or width times height; labels int64 [N]; crowd bool [N]; trainable bool [N], False for boxes that
    only evaluation counts. source, rows: where else images are, int64 [I].
    """

    annotation_file: Path
    image_folder: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    names: np.ndarray
    name_offsets: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    trainable: np.ndarray
    box_offsets: np.ndarray
    report: Report
    source: Source | None = None
    rows: np.ndarray | None = None

    @staticmethod
    def of(annotation_file: Path, image_folder: Path, content: AnnotationFile) -> CocoDataset:
        """Its content, packed."""
        encoded = [name.encode() for name in content.file_names]
        order = np.argsort(content.rows, kind="stable")
        return CocoDataset(
            annotation_file=annotation_file,
            image_folder=image_folder,
            class_names=content.class_names,
            category_ids=content.category_ids,
            image_ids=np.array(content.image_ids, dtype=np.int64),
            widths=np.array(content.widths, dtype=np.int64),
            heights=np.array(content.heights, dtype=np.int64),
            names=np.frombuffer(b"".join(encoded), dtype=np.uint8),
            name_offsets=_offsets(np.array([len(name) for name in encoded], dtype=np.int64)),
            xywh=content.xywh[order],
            areas=content.areas[order],
            labels=content.labels[order],
            crowd=content.crowd[order],
            trainable=content.trainable[order],
            box_offsets=_offsets(np.bincount(content.rows, minlength=len(content.image_ids))),
            report=content.report,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_name(self, index: int) -> str:
        """The image's path below the folder, as in the file."""
        if self.source is not None and self.rows is not None:
            return str(self.source.path(int(self.rows[index])))
        return self.names[self.name_offsets[index] : self.name_offsets[index + 1]].tobytes().decode()

    def image_path(self, index: int) -> Path:
        if self.source is not None and self.rows is not None:
            return self.source.path(int(self.rows[index]))
        return self.image_folder / self.image_name(index)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """An image, HWC uint8 (BGR); of a JPEG file as much as `read_image` says. Raises as that does."""
        if self.source is not None and self.rows is not None:
            return self.source.read(int(self.rows[index]), at_least)
        return read_image(self.image_path(index), at_least)

    def files(self) -> Iterator[Path]:
        """All that is read of it: the annotations and the images."""
        if self.source is not None:
            yield from self.source.files()
            return
        yield self.annotation_file
        yield from files_beside(self.annotation_file, self.image_folder)
        yield from map(self.image_path, range(len(self)))

    def entries(self) -> list[dict[str, Any]]:
        """All annotations in COCO's form, without ids, image after image."""
        columns = {
            "image_id": np.repeat(self.image_ids, np.diff(self.box_offsets)),
            "category_id": np.array(self.category_ids)[self.labels],
            "bbox": self.xywh,
            "area": self.areas,
            "iscrowd": self.crowd.astype(int),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    @property
    def boxes(self) -> np.ndarray:
        """All boxes that training knows, crowd regions included, float32 [T, 4]."""
        return _corners(self.xywh[self.trainable])

    def boxes_of(self, index: int, with_crowd: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [G, 4] and labels [G] of one image to train on.

        with_crowd: also its crowd regions, whose label is -1: they are neither objects nor background. The
        published recipes leave them out; evaluation honors them as COCO does.
        """
        rows = slice(self.box_offsets[index], self.box_offsets[index + 1])
        crowd = self.crowd[rows]
        wanted = self.trainable[rows] & (~crowd | with_crowd)
        return _corners(self.xywh[rows][wanted]), np.where(crowd, -1, self.labels[rows])[wanted]

    def box_counts(self) -> np.ndarray:
        """Boxes to train on per image, crowd regions left out, int64 [I]."""
        before = np.concatenate([[0], np.cumsum(self.trainable & ~self.crowd)])
        return before[self.box_offsets[1:]] - before[self.box_offsets[:-1]]

    def shares(self, repeat_rare: float) -> np.ndarray | None:
        """How often to draw each image against others, by `repeat_factors`, [I]; None for all alike."""
        if not repeat_rare:
            return None
        labels = np.where(self.trainable & ~self.crowd, self.labels, -1)
        return repeat_factors(labels, self.box_offsets, repeat_rare)

    def for_training(self, min_side: int = 32, keep_empty: bool = False) -> CocoDataset:
        """The images that have a box, unless keep_empty is set, and no side under `min_side` pixels; the
        others are reported."""
        empty = (self.box_counts() == 0) & (not keep_empty)
        small = np.minimum(self.widths, self.heights) < min_side
        report = copy.deepcopy(self.report)
        for index in np.flatnonzero(empty | small).tolist():
            reason = "images without boxes" if empty[index] else f"images with a side under {min_side} px"
            report.add(reason, self.image_path(index).name)
        keep = np.flatnonzero(~(empty | small))
        if len(keep) == 0:
            raise DatasetError(
                f"{self.annotation_file}: none of its {len(self)} images can be trained on; left out were "
                + "; ".join(report.lines())
            )
        return self._select(keep, report)

    def _select(self, keep: np.ndarray, report: Report) -> CocoDataset:
        names, name_offsets = _take_ranges(self.names, self.name_offsets, keep)
        rows, box_offsets = _take_ranges(np.arange(len(self.labels)), self.box_offsets, keep)
        return replace(
            self,
            image_ids=self.image_ids[keep],
            widths=self.widths[keep],
            heights=self.heights[keep],
            names=names,
            name_offsets=name_offsets,
            xywh=self.xywh[rows],
            areas=self.areas[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            trainable=self.trainable[rows],
            box_offsets=box_offsets,
            report=report,
            rows=None if self.rows is None else self.rows[keep],
        )

    def summary(self) -> str:
        """A few lines for people: what the data set holds and what was left out of it."""
        objects = self.trainable & ~self.crowd
        per_class = np.bincount(self.labels[objects], minlength=len(self.class_names)).tolist()
        counts = [f"{name} {count}" for name, count in zip(self.class_names, per_class, strict=True)]
        if len(counts) > 20:
            counts = [*counts[:20], f"… {len(counts) - 20} more"]
        lines = [
            f"{self.annotation_file}: {len(self)} images, {int(objects.sum())} boxes, "
            f"{int((self.trainable & self.crowd).sum())} crowd regions, {len(self.class_names)} classes "
            f"({', '.join(counts)})"
        ]
        lines += [f"  left out: {line}" for line in self.report.lines()]
        return "\n".join(lines)


def load_dataset(annotations: str | Path, images: str | Path) -> CocoDataset:
    """Read and check the annotations of the images in the folder `images`, in one of three formats:

    - COCO: a JSON file.
    - Pascal VOC: the folder of its XML files, or an image set (ImageSets/Main/train.txt); see
      `frcnn.data.formats.read_voc`.
    - YOLO: its data.yaml, beside the folder of a split's images; see `frcnn.data.formats.read_yolo`.

    All three go through the same checks. A field that is not what the format says makes the file unusable, in
    training and in evaluation alike:

    - categories: `id` a whole number, `name` text; neither may repeat.
    - images: `id` a whole number that does not repeat, `file_name` a path inside the folder, `width` and
      `height` whole numbers from 1 to 2**24.
    - annotations: `image_id` and `category_id` whole numbers, `bbox` four numbers [x, y, width, height] from
      -2**24 to 2**24; `area`, if there, a number from 0 to 2**48 (absent: width times height); `iscrowd`, if
      there, 0 or 1 or false or true. An annotation's own `id`, `segmentation` and all else are not looked at.

    A whole number may be written 3 or 3.0, lies within 64 bits, and is neither text nor true. Text has 1 to
    4096 characters. NaN and Infinity are read as Python's json reads them.

    An annotation of an unknown image or category is left out and reported. Training further leaves out, by
    MMDetection's rules, a box under one pixel wide or high, outside its image or without area; evaluation
    counts these, as pycocotools does.

    A COCO file of 64 MiB or more is parsed once: its arrays are kept below ~/.cache/frcnn
    (`frcnn.data.cache`).

    Raises DatasetError where the file or an image is missing, the file is malformed (the message names the
    entry and the field), or nothing matches.
    """
    annotation_file, image_folder = Path(annotations), Path(images)
    content = as_coco(annotation_file, image_folder)
    if content is not None:  # of many files
        dataset = CocoDataset.of(annotation_file, image_folder, read_annotations(annotation_file, content))
    else:

        def make() -> Packed:
            return _parts(CocoDataset.of(annotation_file, image_folder, read_annotations(annotation_file)))

        dataset = _whole(annotation_file, image_folder, *packed(annotation_file, make))
    names = [dataset.image_name(index) for index in range(len(dataset))]
    _expect_images(annotation_file, image_folder, names)
    return dataset


def _parts(dataset: CocoDataset) -> Packed:
    """A data set of one file, for the cache."""
    arrays = {name: value for name, value in vars(dataset).items() if isinstance(value, np.ndarray)}
    report = dataset.report
    return arrays, [dataset.class_names, dataset.category_ids, report.counts, report.examples]


def _whole(annotation_file: Path, image_folder: Path, arrays: dict[str, Any], others: Any) -> CocoDataset:
    names, ids, counts, examples = others
    report = Report()
    report.counts.update(counts)
    report.examples.update(examples)
    return CocoDataset(annotation_file, image_folder, tuple(names), tuple(ids), **arrays, report=report)


def _expect_images(annotation_file: Path, folder: Path, names: list[str]) -> None:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such image folder (for {annotation_file})")
    absent = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if absent:
        examples = ", ".join(shown(name) for name in absent[:EXAMPLES])
        raise DatasetError(
            f"{len(absent)} of the {len(names)} images that {annotation_file} names are not in {folder}: "
            f"{examples}{', …' if len(absent) > EXAMPLES else ''}; give the folder that the file names are "
            "relative to, or take these images out of the file"
        )


def _corners(xywh: np.ndarray) -> np.ndarray:
    """(x, y, width, height) float64 [K, 4] -> (x1, y1, x2, y2) float32 [K, 4]."""
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _take_ranges(values: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the kept ranges, packed again, and their offsets."""
    counts = offsets[keep + 1] - offsets[keep]
    new_offsets = _offsets(counts)
    rows = np.repeat(offsets[keep] - new_offsets[:-1], counts) + np.arange(new_offsets[-1])
    return values[rows], new_offsets
