"""A data set written in another format: COCO, Pascal VOC or YOLO."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from frcnn.data.annotations import DatasetError
from frcnn.data.coco import CocoDataset
from frcnn.files import replace_text

Format = Literal["coco", "voc", "yolo"]


def convert(dataset: CocoDataset, format: Format, output: str | Path) -> list[Path]:
    """Write a data set's annotations into a new folder.

    - coco: annotations.json, with the ids that the data set has.
    - voc: Annotations/, an XML file for each image, with classes.txt, which keeps the order of the classes.
      A crowd region becomes a difficult object.
    - yolo: data.yaml, labels/, and images/ with links to the images (copies where the file system has no
      links), as a text file is found by its image's path. YOLO knows no crowd regions: they are left out.

    Coordinates are written as they are, in VOC counted from 1. Of what reading left out, nothing is written.
    Returns what `load_dataset` takes of it: the annotations and the folder of the images. Raises ValueError
    where the output exists, DatasetError for what the format cannot hold, and for a data set made of others,
    whose images are in no one folder.
    """
    if dataset.source is not None:
        raise DatasetError(
            f"{dataset.annotation_file} has no folder of images of its own: convert each data set that was "
            "read from files"
        )
    output = Path(output)
    if os.path.lexists(output):
        raise ValueError(f"{output} exists, and nothing in it is to be overwritten: choose a new folder")
    writers: dict[Format, Callable[[CocoDataset, Path], list[Path]]] = {
        "coco": _write_coco,
        "voc": _write_voc,
        "yolo": _write_yolo,
    }
    return writers[format](dataset, output)


def _write_coco(dataset: CocoDataset, output: Path) -> list[Path]:
    output.mkdir(parents=True)
    sizes = zip(dataset.image_ids.tolist(), dataset.widths.tolist(), dataset.heights.tolist(), strict=True)
    categories = zip(dataset.category_ids, dataset.class_names, strict=True)
    content = {
        "images": [
            {"id": number, "file_name": dataset.image_name(index), "width": width, "height": height}
            for index, (number, width, height) in enumerate(sizes)
        ],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(dataset.entries(), 1)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    replace_text(output / "annotations.json", json.dumps(content))
    return [output / "annotations.json", dataset.image_folder]


def _write_voc(dataset: CocoDataset, output: Path) -> list[Path]:
    folder = output / "Annotations"
    files = _files(dataset, folder, ".xml")
    replace_text(folder / "classes.txt", "".join(f"{name}\n" for name in dataset.class_names))
    for index, file in enumerate(files):
        objects = [
            ({"name": dataset.class_names[label], "difficult": int(crowd)}, xywh)
            for label, crowd, xywh in _objects(dataset, index)
        ]
        name = Path(dataset.image_name(index)).name
        replace_text(file, voc_xml(name, int(dataset.widths[index]), int(dataset.heights[index]), objects))
    return [folder, dataset.image_folder]


def _write_yolo(dataset: CocoDataset, output: Path) -> list[Path]:
    labels, images = output / "labels", output / "images"
    for index, file in enumerate(_files(dataset, labels, ".txt")):
        width, height = int(dataset.widths[index]), int(dataset.heights[index])
        lines = []
        for label, crowd, xywh in _objects(dataset, index):
            lines += [] if crowd else [yolo_line(label, xywh, width, height)]
        replace_text(file, "".join(f"{line}\n" for line in lines))
        target = images / dataset.image_name(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(dataset.image_path(index), target)
        except OSError:
            shutil.copyfile(dataset.image_path(index), target)
    names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(dataset.class_names))
    replace_text(output / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")
    return [output / "data.yaml", images]


def voc_xml(filename: str, width: int, height: int, objects: Iterable[tuple[dict, Sequence[float]]]) -> str:
    """Pascal VOC's file of an image, of what each object says and its box (x, y, width, height in pixels)."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    _add(root, "size", {"width": width, "height": height, "depth": 3})
    for told, (x, y, w, h) in objects:
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        _add(_add(root, "object", told), "bndbox", {name: f"{value:.12g}" for name, value in corners.items()})
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode") + "\n"


def yolo_line(label: int, xywh: Sequence[float], width: int, height: int) -> str:
    """A line of YOLO's, without its end: label, center and size as fractions of the image's."""
    x, y, w, h = xywh
    fractions = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
    return " ".join([str(label), *(f"{number:.12g}" for number in fractions)])


def _files(dataset: CocoDataset, folder: Path, suffix: str) -> list[Path]:
    """A file for each image, whose folder is made. Raises DatasetError where two images would share one."""
    owner: dict[Path, str] = {}
    for index in range(len(dataset)):
        name = dataset.image_name(index)
        file = (folder / name).with_suffix(suffix)
        if (other := owner.setdefault(file, name)) != name:
            raise DatasetError(
                f"{dataset.annotation_file}: {other} and {name} differ in their suffix only, and both would "
                f"be {file.name}: rename one"
            )
    for parent in {file.parent for file in owner}:
        parent.mkdir(parents=True, exist_ok=True)
    return list(owner)


def _objects(dataset: CocoDataset, index: int) -> list[tuple[int, bool, list[float]]]:
    """Label, whether it is a crowd region, and x, y, width, height of each annotation of an image."""
    rows = slice(dataset.box_offsets[index], dataset.box_offsets[index + 1])
    columns = dataset.labels[rows], dataset.crowd[rows], dataset.xywh[rows]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _add(parent: ElementTree.Element, name: str, children: dict) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name)
    for child, value in children.items():
        ElementTree.SubElement(element, child).text = str(value)
    return element
