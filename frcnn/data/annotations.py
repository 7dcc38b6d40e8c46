"""COCO annotation files: read once, every field that is used checked, for training and evaluation alike."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from frcnn.checked import MOST_CHARACTERS, is_name

EXAMPLES = 3
"""How many offenders a message names."""

MAX_COORDINATE = 2**24
"""Largest side of an image and coordinate of a box: beyond it float32 cannot tell a pixel from the next."""

UNKNOWN_IMAGES = "boxes of an unknown image id"
UNKNOWN_CATEGORIES = "boxes of an unknown category id"

T = TypeVar("T")


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, what is wrong and what to do."""


class _MalformedError(ValueError):
    """An entry that is not what it should be; the message says which field and what it should be."""


@dataclass
class Report:
    """What was left out of a data set, by reason, with the first few offenders."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(example)

    def extend(self, other: Report) -> None:
        """Count what another has left out too."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            self.examples[reason] = (self.examples[reason] + other.examples[reason])[:EXAMPLES]

    def lines(self) -> list[str]:
        """One line per reason: how many, why, which."""
        lines = []
        for reason, count in self.counts.items():
            examples = ", ".join(self.examples[reason])
            lines.append(f"{count} {reason}: {examples}{', …' if count > len(self.examples[reason]) else ''}")
        return lines


@dataclass(frozen=True)
class AnnotationFile:
    """The checked content of a file with I images and N annotations that can be used.

    class_names, category_ids: sorted by category id; a label is an index into both.
    image_ids, file_names, widths, heights: one per image.
    rows, labels: int64 [N], image and class of every annotation. xywh: float64 [N, 4], as in the file.
    areas: float64 [N]. crowd: bool [N]. trainable: bool [N], False where only evaluation counts the box.
    report: what was left out.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: list[int]
    file_names: list[str]
    widths: list[int]
    heights: list[int]
    rows: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    trainable: np.ndarray
    report: Report


Content = dict[str, list[dict[str, Any]]]
"""Of a COCO file."""
AnnotatedImage = tuple[str, tuple[int, int], Sequence[tuple[str, float, list[float], bool]]]
"""file_name, (width, height) and, of each annotation, where it is from, category_id, bbox and iscrowd."""


def coco_content(
    categories: Iterable[tuple[int, str]], images: Iterable[AnnotatedImage], first: int = 1
) -> Content:
    """What a COCO file would hold of categories (id, name) and images, whose ids count from `first`."""
    content: Content = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in categories]
    for number, (place, (width, height), found) in enumerate(images, first):
        content["images"].append({"id": number, "file_name": place, "width": width, "height": height})
        for where, category, box, crowd in found:
            entry = {"id": where, "image_id": number, "category_id": category, "bbox": box, "iscrowd": crowd}
            content["annotations"].append(entry)
    return content


def read_annotations(path: Path, content: Content | None = None) -> AnnotationFile:
    """Check annotations by the rules of `frcnn.data.load_dataset`. Raises DatasetError.

    content: what a COCO file would hold; by default, what the file holds.
    """
    content = _checked(path, _json(path) if content is None else content)
    categories = list(_each(path, content, "categories", _category))
    _expect_unique(path, "categories", "id", [category_id for category_id, _ in categories])
    _expect_unique(path, "categories", "name", [name for _, name in categories])
    category_ids, class_names = zip(*sorted(categories), strict=True)
    images = _each(path, content, "images", _image)
    image_ids, file_names, widths, heights = map(list, zip(*images, strict=True))
    _expect_unique(path, "images", "id", image_ids)

    entries = content["annotations"]
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    report = Report()
    kept, rows, labels, xywh, areas, crowd = [], [], [], [], [], []
    for position, annotation in enumerate(_each(path, content, "annotations", _annotation)):
        image_id, category_id, box, area, is_crowd = annotation
        row, label = row_of.get(image_id), label_of.get(category_id)
        if row is None:
            report.add(UNKNOWN_IMAGES, _described(entries, position))
        elif label is None:
            report.add(UNKNOWN_CATEGORIES, f"{_described(entries, position)}: {category_id}")
        else:
            kept.append(position)
            rows.append(row)
            labels.append(label)
            xywh.append(box)
            areas.append(box[2] * box[3] if area is None else area)
            crowd.append(is_crowd)
    found = AnnotationFile(
        class_names,
        category_ids,
        image_ids,
        file_names,
        widths,
        heights,
        np.array(rows, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(xywh, dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array(crowd, dtype=bool),
        np.ones(len(rows), dtype=bool),
        report,
    )
    _mark_untrainable(found, lambda index: _described(entries, kept[index]))
    if not found.trainable.any():
        hint = ""
        if report.counts.get(UNKNOWN_IMAGES) == len(entries):
            hint = _no_match("image_id", entries, "images", image_ids)
        elif report.counts.get(UNKNOWN_CATEGORIES) == len(entries):
            hint = _no_match("category_id", entries, "categories", category_ids)
        raise DatasetError(
            f"{path}: none of its {len(entries)} annotations can be used{hint}: " + "; ".join(report.lines())
        )
    return found


def _mark_untrainable(found: AnnotationFile, describe: Callable[[int], str]) -> None:
    """Clear `trainable` where MMDetection's training leaves a box out, and report it."""
    x, y, width, height = found.xywh.T
    image_width = np.array(found.widths, dtype=np.float64)[found.rows]
    image_height = np.array(found.heights, dtype=np.float64)[found.rows]
    inside_width = np.minimum(x + width, image_width) - np.maximum(x, 0)
    inside_height = np.minimum(y + height, image_height) - np.maximum(y, 0)
    for reason, applies in (
        ("boxes less than one pixel wide or high", (width < 1) | (height < 1)),
        ("boxes outside their image", (inside_width <= 0) | (inside_height <= 0)),
        ("boxes without area", found.areas <= 0),
    ):
        for index in np.flatnonzero(applies & found.trainable).tolist():
            found.report.add(reason, describe(index))
            found.trainable[index] = False


def _json(path: Path) -> Any:
    """The file's content."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file") from None
    except (OSError, ValueError) as error:  # a folder, no permission; a name with a NUL
        raise DatasetError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data.startswith(b"\x1f\x8b"):
        raise DatasetError(f"{path}: not a JSON file but compressed by gzip; unpack it")
    try:
        content = _values(data)
    except RecursionError:
        raise DatasetError(f"{path}: not an annotation file: its values are nested too deeply") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise DatasetError(f"{path}: not a JSON file ({error})") from None
    return content


def _checked(path: Path, content: Any) -> dict:
    """Content that has the three lists that COCO detection needs."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path}: no list '{key}'; a COCO detection file has 'images', 'annotations' and 'categories'"
            )
        if not content[key]:
            raise DatasetError(f"{path}: its list '{key}' is empty")
    return content


@dataclass(frozen=True)
class _LongNumber:
    """In place of a whole number of more digits than Python converts: of no type that a field may have."""

    digits: int

    def __repr__(self) -> str:
        return f"a number of {self.digits} digits"


def _integer(text: str) -> int | _LongNumber:
    try:
        return int(text)
    except ValueError:
        return _LongNumber(len(text.lstrip("-")))


def _values(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeError):
        raise
    except ValueError:  # a long number; the slower way, which finds the field, only now
        return json.loads(data, parse_int=_integer)


def _each(path: Path, content: dict, key: str, parse: Callable[[dict], T]) -> Iterable[T]:
    """Every entry of a list of the file, parsed; an error names the file and the entry."""
    for position, entry in enumerate(content[key]):
        try:
            if not isinstance(entry, dict):
                raise _MalformedError(f"must be an object, got {shown(entry)}")
            yield parse(entry)
        except _MalformedError as error:
            of = entry.get("id") if key == "annotations" and isinstance(entry, dict) else None
            place = f" ({shown(of)})" if isinstance(of, str) else ""  # where one of VOC or YOLO is from
            raise DatasetError(f"{path}: {key}[{position}]{place}: {error}") from None


def _category(entry: dict) -> tuple[int, str]:
    name = _text(entry, "name")
    if not is_name(name):
        raise _wrong("name", "text without control characters", name)
    return _whole(entry, "id"), name


def _image(entry: dict) -> tuple[int, str, int, int]:
    name = _text(entry, "file_name")
    if "\0" in name or os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
        raise _wrong("file_name", "a path inside the image folder", name)
    width, height = (_whole(entry, side, 1, MAX_COORDINATE) for side in ("width", "height"))
    return _whole(entry, "id"), name, width, height


def _annotation(entry: dict) -> tuple[int, int, list[float], float | None, bool]:
    """image_id, category_id, bbox, area (None where absent), iscrowd."""
    area, crowd = entry.get("area", 0), entry.get("iscrowd", 0)
    if type(area) not in (int, float) or not 0 <= area <= MAX_COORDINATE**2:
        raise _wrong("area", f"a number from 0 to {MAX_COORDINATE**2}, or absent", area)
    if type(crowd) not in (int, float, bool) or crowd not in (0, 1):
        raise _wrong("iscrowd", "0 or 1, or absent", crowd)
    image_id, category_id = _whole(entry, "image_id"), _whole(entry, "category_id")
    return image_id, category_id, _box(entry), area if "area" in entry else None, bool(crowd)


def _box(entry: dict) -> list[float]:
    box = _value(entry, "bbox")
    if type(box) is not list or len(box) != 4:
        raise _wrong("bbox", "[x, y, width, height]", box)
    for number in box:
        if type(number) not in (int, float) or not -MAX_COORDINATE <= number <= MAX_COORDINATE:
            expected = f"[x, y, width, height], four numbers from {-MAX_COORDINATE} to {MAX_COORDINATE}"
            raise _wrong("bbox", expected, box)
    return box


def _value(entry: dict, key: str) -> object:
    try:
        return entry[key]
    except KeyError:
        raise _MalformedError(f"no '{key}'") from None


def _wrong(key: str, expected: str, value: object) -> _MalformedError:
    return _MalformedError(f"'{key}' must be {expected}, got {shown(value)}")


def _whole(entry: dict, key: str, lowest: int = -(2**63), highest: int = 2**63 - 1) -> int:
    value = _value(entry, key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not lowest <= value <= highest:
        bounds = f" from {lowest} to {highest}" if lowest == 1 else ""
        raise _wrong(key, f"a whole number{bounds}", value)
    return value


def _text(entry: dict, key: str) -> str:
    value = _value(entry, key)
    try:
        if type(value) is str and 0 < len(value) <= MOST_CHARACTERS and value.encode():
            return value
    except UnicodeEncodeError:  # half of a surrogate pair, which no file system and no terminal takes
        pass
    raise _wrong(key, f"text of 1 to {MOST_CHARACTERS} characters", value)


def _expect_unique(path: Path, key: str, name: str, values: Sequence[object]) -> None:
    first: dict[object, int] = {}
    for position, value in enumerate(values):
        other = first.setdefault(value, position)
        if other != position:
            raise DatasetError(
                f"{path}: {key}[{position}]: '{name}' {shown(value)} is also that of {key}[{other}]"
            )


def _no_match(key: str, entries: list[dict], side: str, known: Sequence[int]) -> str:
    """Both sides of a reference that matched nothing."""
    referred = sorted({int(entry[key]) for entry in entries})
    return (
        f"; '{key}' matched none of the '{side}': {len(referred)} ids referred to "
        f"({_first(referred)}), {len(known)} ids defined ({_first(known)})"
    )


def _first(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:EXAMPLES])) + (", …" if len(ids) > EXAMPLES else "")


def _described(entries: list[dict], position: int) -> str:
    entry = entries[position]
    return (
        f"annotation {shown(entry.get('id', position))} (image id {shown(entry['image_id'])}, "
        f"bbox {shown(entry['bbox'])})"
    )


def shown(value: object) -> str:
    """A value of a file for a message, shortened: a file may hold megabytes in one field."""
    return "null" if value is None else _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlong = 40
