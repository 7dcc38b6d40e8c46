"""Pascal VOC and YOLO annotations, read into the content of a COCO file, which is then checked as one.

An annotation's "id" says where it is from: messages show it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from frcnn.data.annotations import AnnotatedImage, Content, DatasetError, coco_content, shown
from frcnn.read_image import ImageError, image_suffixes, read_header

MOST_BYTES = 2**26
"""Of one file of annotations."""

SLACK = 0.01
"""How far a fraction may be outside 0 to 1, as rounding makes it."""


def as_coco(annotations: Path, images: Path) -> Content | None:
    """What a COCO file would hold, of a data set in one of the other formats. Raises DatasetError."""
    if _is_voc(annotations):
        return read_voc(annotations, images)
    return read_yolo(annotations, images) if _is_yolo(annotations) else None


def files_beside(annotations: Path, images: Path) -> Iterator[Path]:
    """What is read of a data set besides the file, or folder, that names it and the images."""
    if _is_voc(annotations):
        yield from _voc_folder(annotations).rglob("*")
    elif _is_yolo(annotations):
        yield from _yolo_labels(images).rglob("*.txt")


def _is_voc(annotations: Path) -> bool:
    return annotations.is_dir() or annotations.suffix.lower() == ".txt"


def _is_yolo(annotations: Path) -> bool:
    return annotations.suffix.lower() in (".yaml", ".yml")


def read_voc(annotations: Path, images: Path) -> Content:
    """The content of a COCO file, of a folder of Pascal VOC's XML files or an image set of VOC's.

    annotations: the folder, searched recursively; or ImageSets/Main/NAME.txt, the stems of the files of the
        folder Annotations beside ImageSets.

    An image is the one that <filename> names, in the same folder as the XML file or in any other if only one
    is called so; or else the one named like the XML file. A box (xmin, ymin, xmax, ymax), whose pixels count
    from 1 and belong to it, is (xmin - 1, ymin - 1) to (xmax, ymax); a difficult object becomes a crowd
    region: not trained on, and neither missed nor wrong in evaluation. The classes are those of classes.txt
    in the folder of the XML files, a name in each line, or else of all files of that folder, sorted, so that
    every image set of it has the same.

    Raises DatasetError, which names the file and the field.
    """
    if not annotations.exists():
        raise DatasetError(f"{annotations}: no such annotation file")
    folder, wanted = _voc_folder(annotations), None
    if annotations.is_file():
        wanted = [line.split() for line in _text(annotations).splitlines() if line.strip()]
        if any(len(line) > 1 for line in wanted):
            raise DatasetError(f"{annotations}: a set of one class; give that of all, such as train.txt")
        if not folder.is_dir():
            raise DatasetError(f"{annotations}: its files are expected in {folder}, which is no folder")
    files = {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.xml"))}
    if not files:
        raise DatasetError(f"{folder}: no .xml file in it")
    used = files if wanted is None else {line[0]: folder / f"{line[0]}.xml" for line in wanted}
    known = _names_in(folder / "classes.txt")
    parsed = {name: _voc_file(file) for name, file in (used if known else {**files, **used}).items()}
    names = known or sorted({found[0] for objects in parsed.values() for found in objects[3]})
    ids = {name: number for number, name in enumerate(names, 1)}
    there = _images_in(images)
    owner: dict[str, Path] = {}

    def read(name: str, file: Path) -> AnnotatedImage:
        filename, width, height, objects = parsed[name]
        place = _image_of(images, there, filename, name, file)
        if (other := owner.setdefault(place, file)) != file:
            raise DatasetError(f"{file}: it and {other} are both of the image {place}: correct <filename>")
        annotations = []
        for position, (label, box, difficult) in enumerate(objects, 1):
            if label not in ids:
                raise DatasetError(f"{file}: object {position}: {shown(label)} is not in classes.txt")
            annotations.append((f"{file.name}, object {position}", ids[label], box, difficult))
        return place, (width, height) if width and height else _size(images / place), annotations

    categories = ((number, name) for name, number in ids.items())
    return coco_content(categories, (read(*one) for one in used.items()))


def read_yolo(description: Path, images: Path) -> Content:
    """The content of a COCO file, of a YOLO data set.

    description: its data.yaml, of which `names` is used. images: the folder of a split, searched recursively;
        the last part of its path that is called "images" is "labels" for the text files (without such a part
        they are beside the images). An image without a text file has no boxes.

    A line is a class and four fractions of the image's width and height (center x, center y, width, height),
    or a class and the corners of a polygon, whose bounds are the box.

    Raises DatasetError, which names the file and the line.
    """
    names = _yolo_names(description)
    labels = _yolo_labels(images)

    def read(place: str) -> AnnotatedImage:
        width, height = _size(images / place)
        file = (labels / place).with_suffix(".txt")
        annotations = []
        for position, line in enumerate(_text(file).splitlines() if file.exists() else [], 1):
            if line.strip():
                label, box = _yolo_line(line, len(names), f"{file}: line {position}")
                sides = zip(box, (width, height) * 2, strict=True)
                left, top, right, bottom = (side * size for side, size in sides)
                box_in_pixels = [left, top, right - left, bottom - top]
                annotations.append((f"{file.name}, line {position}", label, box_in_pixels, False))
        return place, (width, height), annotations

    return coco_content(enumerate(names), map(read, _images_in(images)))


Object = tuple[str, list[float], bool]
"""Of VOC: class, box as COCO has it, difficult."""


def _voc_folder(annotations: Path) -> Path:
    """The folder itself, or of an image set that beside ImageSets."""
    if not annotations.is_file():
        return annotations
    return annotations.absolute().parent.parent.parent / "Annotations"


def _yolo_labels(images: Path) -> Path:
    parts = list(images.absolute().parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _voc_file(file: Path) -> tuple[str, int, int, list[Object]]:
    """File name, width and height (0 where not said) and the objects."""
    text = _text(file)
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):  # which could unfold to any size
        raise DatasetError(f"{file}: has a document type, which no VOC file needs: take it out")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not an XML file ({error})") from None
    if root.tag != "annotation":
        raise DatasetError(f"{file}: not of VOC: its root is <{shown(root.tag)}>, expected <annotation>")
    width, height = (int(_number(root, f"size/{side}", file, "0")) for side in ("width", "height"))
    return (root.findtext("filename") or "").strip(), width, height, [*_objects(root, file)]


def _objects(root: ElementTree.Element, file: Path) -> Iterator[Object]:
    for position, element in enumerate(root.findall("object"), 1):
        where = f"{file}: object {position}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DatasetError(f"{where}: no <name>")
        xmin, ymin, xmax, ymax = (
            _number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        box = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
        yield name, box, _number(element, "difficult", where, "0") != 0


def _number(element: ElementTree.Element, path: str, where: Path | str, default: str | None = None) -> float:
    text = element.findtext(path, default)
    try:
        return float(text or "")
    except ValueError:
        told = "is missing" if text is None else f"is {shown(text)}, expected a number"
        raise DatasetError(f"{where}: <{path.replace('/', '> <')}> {told}") from None


def _yolo_names(description: Path) -> list[str]:
    try:
        import yaml
    except ImportError:
        raise DatasetError(
            f"{description}: PyYAML, which reads it, is missing: pip install pyyaml, or frcnn with its "
            "extra data"
        ) from None
    try:
        names = yaml.safe_load(_text(description))["names"]
        if isinstance(names, dict):
            names = [names[number] for number in range(len(names))]
        if isinstance(names, list) and names and all(isinstance(name, str | int) for name in names):
            return [str(name) for name in names]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        pass
    raise DatasetError(f"{description}: expected `names:`, a list of class names or 0: name, 1: name, …")


def _yolo_line(line: str, classes: int, where: str) -> tuple[int, tuple[float, float, float, float]]:
    """The class, and the box's corners as fractions."""
    try:
        label, *values = (float(word) for word in line.split())
    except ValueError:
        raise DatasetError(f"{where}: {shown(line)} is not numbers") from None
    if not (label.is_integer() and 0 <= label < classes):
        raise DatasetError(f"{where}: class {label:g} is none of 0 to {classes - 1}")
    if not all(-SLACK <= value <= 1 + SLACK for value in values):  # nor is NaN
        raise DatasetError(f"{where}: {shown(line)}: expected fractions of the image's size, from 0 to 1")
    if len(values) == 4:
        x, y, width, height = values
        return int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) < 6 or len(values) % 2:
        raise DatasetError(f"{where}: {len(values) + 1} numbers; expected a class and a box or a polygon")
    return int(label), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))


def _images_in(folder: Path) -> list[str]:
    """Paths below the folder, sorted."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such image folder")
    suffixes = image_suffixes()
    found = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    if not found:
        raise DatasetError(f"{folder}: no image in it")
    return list(map(str, found))


def _image_of(images: Path, there: list[str], filename: str, stem: str, file: Path) -> str:
    """The image of an XML file, whose path below its folder is stem, without the suffix."""
    name = re.split(r"[/\\]", filename)[-1]
    beside = os.path.join(os.path.dirname(stem), name)
    for fitting in (
        [place for place in there if place == beside],
        [place for place in there if os.path.basename(place) == name],
        [place for place in there if os.path.splitext(place)[0] == stem],
    ):
        if len(fitting) > 1:
            raise DatasetError(f"{file}: {shown(filename)} may be any of {', '.join(fitting[:3])}")
        if fitting:
            return fitting[0]
    raise DatasetError(f"{file}: neither {shown(filename)} nor an image called {shown(stem)} is in {images}")


def _size(path: Path) -> tuple[int, int]:
    try:
        header = read_header(path)
    except ImageError as error:
        raise DatasetError(f"{error}: take it out of the data set") from None
    return header.width, header.height


def _names_in(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()] if path.is_file() else []


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DatasetError(f"{path}: larger than {MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
