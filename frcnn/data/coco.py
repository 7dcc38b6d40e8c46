"""COCO annotation files: read, check, and pack into a few arrays.

Shape shorthand: I images, N boxes of the whole data set. Boxes are (x1, y1, x2, y2) in pixels of the
original picture; the file stores (x, y, width, height).

The arrays matter: a list of a million Python objects is copied page by page into every worker process as
reference counts change, an array is not.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

EXAMPLES = 3
"""How many offenders a message names."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass
class Report:
    """What was left out of a data set, by reason, with the first few offenders."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(example)

    def lines(self) -> list[str]:
        """One line per reason: how many, why, which."""
        lines = []
        for reason, count in self.counts.items():
            shown = ", ".join(self.examples[reason])
            lines.append(f"{count} {reason}: {shown}{', …' if count > len(self.examples[reason]) else ''}")
        return lines


@dataclass(frozen=True)
class CocoDataset:
    """Pictures and boxes of one annotation file.

    class_names, category_ids: sorted by category id; a label is an index into both.
    image_ids, widths, heights: int64 [I].
    names, name_offsets: uint8 bytes of all file names, int64 [I + 1].
    boxes: float32 [N, 4]; labels: int64 [N]; crowd: bool [N]; box_offsets: int64 [I + 1].
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
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    box_offsets: np.ndarray
    report: Report

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_path(self, index: int) -> Path:
        name = self.names[self.name_offsets[index] : self.name_offsets[index + 1]].tobytes().decode()
        return self.image_folder / name

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G, 4] and labels [G] of one picture, crowd regions left out.

        A crowd region is neither an object nor background that training should learn, and the published
        recipes ignore it altogether, so no target is made of it; evaluation honours it as COCO does.
        """
        rows = slice(self.box_offsets[index], self.box_offsets[index + 1])
        objects = ~self.crowd[rows]
        return self.boxes[rows][objects], self.labels[rows][objects]

    def ignored_boxes_of(self, index: int) -> np.ndarray:
        """Crowd regions [I, 4] of one picture."""
        rows = slice(self.box_offsets[index], self.box_offsets[index + 1])
        return self.boxes[rows][self.crowd[rows]]

    def box_counts(self) -> np.ndarray:
        """Boxes per picture without crowd regions, int64 [I]."""
        before = np.concatenate([[0], np.cumsum(~self.crowd)])
        return before[self.box_offsets[1:]] - before[self.box_offsets[:-1]]

    def for_training(self, min_side: int = 32) -> CocoDataset:
        """The pictures that have a box and no side under `min_side` pixels; the others are reported."""
        empty = self.box_counts() == 0
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
        boxes, box_offsets = _take_ranges(self.boxes, self.box_offsets, keep)
        labels, _ = _take_ranges(self.labels, self.box_offsets, keep)
        crowd, _ = _take_ranges(self.crowd, self.box_offsets, keep)
        return replace(
            self,
            image_ids=self.image_ids[keep],
            widths=self.widths[keep],
            heights=self.heights[keep],
            names=names,
            name_offsets=name_offsets,
            boxes=boxes,
            labels=labels,
            crowd=crowd,
            box_offsets=box_offsets,
            report=report,
        )

    def summary(self) -> str:
        """A few lines for people: what the data set holds and what was left out of it."""
        per_class = np.bincount(self.labels[~self.crowd], minlength=len(self.class_names)).tolist()
        shown = [f"{name} {count}" for name, count in zip(self.class_names, per_class, strict=True)]
        if len(shown) > 20:
            shown = [*shown[:20], f"… {len(shown) - 20} more"]
        lines = [
            f"{self.annotation_file}: {len(self)} images, {int((~self.crowd).sum())} boxes, "
            f"{int(self.crowd.sum())} crowd regions, {len(self.class_names)} classes ({', '.join(shown)})"
        ]
        lines += [f"  left out: {line}" for line in self.report.lines()]
        return "\n".join(lines)


def load_coco(annotations: str | Path, images: str | Path) -> CocoDataset:
    """Read and check a COCO annotation file whose pictures lie in the folder `images`.

    Annotations are kept and left out by MMDetection's rules: a box must meet the picture, have an area, and
    be at least one pixel wide and high. Whatever is left out is in the data set's report.

    Raises DatasetError where the file or a picture is missing, the file is malformed, or nothing matches.
    """
    annotation_file, image_folder = Path(annotations), Path(images)
    content = read_annotations(annotation_file)
    if not image_folder.is_dir():
        raise DatasetError(f"{image_folder}: no such image folder (for {annotation_file})")

    class_names, category_ids = _categories(annotation_file, content["categories"])
    names, image_ids, widths, heights = _images(annotation_file, image_folder, content["images"])
    report = Report()
    image_rows, boxes, labels, crowd = _boxes(
        annotation_file, content["annotations"], image_ids, widths, heights, category_ids, report
    )

    encoded = [name.encode() for name in names]
    order = np.argsort(image_rows, kind="stable")
    return CocoDataset(
        annotation_file=annotation_file,
        image_folder=image_folder,
        class_names=class_names,
        category_ids=category_ids,
        image_ids=np.array(image_ids, dtype=np.int64),
        widths=np.array(widths, dtype=np.int64),
        heights=np.array(heights, dtype=np.int64),
        names=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        name_offsets=_offsets(np.array([len(name) for name in encoded], dtype=np.int64)),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4)[order],
        labels=np.array(labels, dtype=np.int64)[order],
        crowd=np.array(crowd, dtype=bool)[order],
        box_offsets=_offsets(np.bincount(image_rows, minlength=len(image_ids))),
        report=report,
    )


def read_annotations(path: Path) -> dict:
    """The file's content, with the three lists that COCO detection needs."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a JSON file ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path}: no list '{key}'; a COCO detection file has 'images', 'annotations' and 'categories'"
            )
        if not content[key]:
            raise DatasetError(f"{path}: its list '{key}' is empty")
    return content


def _categories(path: Path, entries: list[dict]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    pairs = []
    for position, entry in enumerate(entries):
        where = f"{path}: categories[{position}]"
        pairs.append((_integer(entry, "id", where), str(_value(entry, "name", where))))
    pairs.sort()
    ids, names = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    for what, values in (("id", ids), ("name", names)):
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise DatasetError(f"{path}: categories share the {what} {', '.join(repeated[:EXAMPLES])}")
    return names, ids


def _images(
    path: Path, folder: Path, entries: list[dict]
) -> tuple[list[str], list[int], list[int], list[int]]:
    names, ids, widths, heights, absent = [], [], [], [], []
    for position, entry in enumerate(entries):
        where = f"{path}: images[{position}]"
        names.append(str(_value(entry, "file_name", where)))
        ids.append(_integer(entry, "id", where))
        widths.append(_integer(entry, "width", where))
        heights.append(_integer(entry, "height", where))
        if widths[-1] < 1 or heights[-1] < 1:
            raise DatasetError(f"{where} ({names[-1]}): width and height must be positive")
        if not os.path.isfile(os.path.join(folder, names[-1])):
            absent.append(names[-1])
    if absent:
        raise DatasetError(
            f"{len(absent)} of the {len(entries)} images that {path} names are not in {folder}: "
            f"{', '.join(absent[:EXAMPLES])}{', …' if len(absent) > EXAMPLES else ''}; give the folder that "
            "the file names are relative to, or take these images out of the file"
        )
    if len(set(ids)) < len(ids):
        seen: set[int] = set()
        repeated = [str(i) for i in ids if i in seen or seen.add(i)]
        raise DatasetError(f"{path}: several images have the id {', '.join(repeated[:EXAMPLES])}")
    return names, ids, widths, heights


def _boxes(
    path: Path,
    entries: list[dict],
    image_ids: list[int],
    widths: list[int],
    heights: list[int],
    category_ids: tuple[int, ...],
    report: Report,
) -> tuple[np.ndarray, list[list[float]], list[int], list[bool]]:
    """Row of the image, box, label and crowd flag of every annotation that is kept."""
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    unknown_images, unknown_categories = "boxes of an unknown image id", "boxes of an unknown category id"
    rows, boxes, labels, crowd = [], [], [], []
    for position, entry in enumerate(entries):
        where = f"{path}: annotations[{position}]"
        image_id, category_id = _value(entry, "image_id", where), _value(entry, "category_id", where)
        box = parse_box(_value(entry, "bbox", where), where)
        name = f"annotation {entry.get('id', position)} (image id {image_id}, bbox {entry['bbox']})"
        row, label = row_of.get(image_id), label_of.get(category_id)
        if row is None:
            report.add(unknown_images, name)
            continue
        if label is None:
            report.add(unknown_categories, f"{name}: {category_id}")
            continue
        if box is None:
            report.add("boxes with a coordinate that is not finite", name)
            continue
        x, y, width, height = box
        inside_width = min(x + width, widths[row]) - max(x, 0)
        inside_height = min(y + height, heights[row]) - max(y, 0)
        if width < 1 or height < 1:
            report.add("boxes less than one pixel wide or high", name)
        elif inside_width <= 0 or inside_height <= 0:
            report.add("boxes outside their image", name)
        elif not entry.get("area", width * height) > 0:
            report.add("boxes without area", name)
        else:
            rows.append(row)
            boxes.append([x, y, x + width, y + height])
            labels.append(label)
            crowd.append(bool(entry.get("iscrowd", 0)))
    if not boxes:
        hint = ""
        if report.counts.get(unknown_images) == len(entries):
            hint = _no_match("image_id", entries, "images", image_ids)
        elif report.counts.get(unknown_categories) == len(entries):
            hint = _no_match("category_id", entries, "categories", category_ids)
        raise DatasetError(
            f"{path}: none of its {len(entries)} annotations can be used{hint}: " + "; ".join(report.lines())
        )
    return np.array(rows, dtype=np.int64), boxes, labels, crowd


def parse_box(bbox: object, where: str) -> tuple[float, float, float, float] | None:
    """(x, y, width, height), or None where a number is not finite."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise DatasetError(f"{where}: bbox must be [x, y, width, height], got {bbox!r}")
    if not all(isinstance(number, (int, float)) for number in bbox):
        if all(number is None or isinstance(number, (int, float)) for number in bbox):
            return None
        raise DatasetError(f"{where}: bbox must hold four numbers, got {bbox!r}")
    if not all(math.isfinite(number) for number in bbox):
        return None
    return tuple(float(number) for number in bbox)


def _no_match(key: str, entries: list[dict], side: str, known: list[int] | tuple[int, ...]) -> str:
    """Both sides of a reference that matched nothing."""
    referred = sorted({str(entry[key]) for entry in entries})
    have = [str(value) for value in known]
    return (
        f"; '{key}' matched none of the '{side}': {len(referred)} ids referred to "
        f"({', '.join(referred[:EXAMPLES])}{', …' if len(referred) > EXAMPLES else ''}), "
        f"{len(have)} ids defined ({', '.join(have[:EXAMPLES])}{', …' if len(have) > EXAMPLES else ''})"
    )


def _value(entry: object, key: str, where: str) -> object:
    if not isinstance(entry, dict) or key not in entry:
        raise DatasetError(f"{where}: no '{key}'")
    return entry[key]


def _integer(entry: object, key: str, where: str) -> int:
    value = _value(entry, key, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise DatasetError(f"{where}: '{key}' must be a whole number, got {value!r}")
    return int(value)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _take_ranges(values: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the kept ranges, packed again, and their offsets."""
    counts = offsets[keep + 1] - offsets[keep]
    new_offsets = _offsets(counts)
    rows = np.repeat(offsets[keep] - new_offsets[:-1], counts) + np.arange(new_offsets[-1])
    return values[rows], new_offsets
