"""`frcnn data`: look at a data set, draw it, write it in another format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from frcnn.checked import OptionError, check_whole
from frcnn.commands.model import Annotations, Images, default
from frcnn.files import check_keeps, check_writable, replace_text, replacing

Pages = Annotated[Path | None, default("FILE", "none")]


def check(
    annotations: Positional[Annotations],
    images: Positional[Images],
    other_annotations: Annotated[
        tuple[Path, ...], default("FILE [FILE …]", "none", "Those of other splits: no image may be in two.")
    ] = (),
    other_images: Annotated[
        tuple[Path, ...], default("DIR [DIR …]", "DIR", "Their folders, where they have others.")
    ] = (),
    recipe: str = "faster_rcnn_r50_fpn_1x_coco",
    json_file: Pages = None,
    html: Pages = None,
) -> int:
    """Look at every image and box before training: what cannot be used, and what is probably wrong.

    The exit code is 1 if there is an error: something that is left out of training, or that spoils its
    measurement.

    Args:
        recipe: Whose anchors, sizes and filters the boxes are held against.
        json_file: Write all that was found to this file.
        html: Write it to this page, which shows the images in question and needs no other file. It takes the
            package jinja2.
    """
    from frcnn.data import load_dataset
    from frcnn.data.check import check
    from frcnn.data.check_page import check_page
    from frcnn.zoo.recipes import recipe as recipe_named

    folders = other_images or (images,) * len(other_annotations)
    if len(folders) != len(other_annotations):
        raise OptionError(
            f"other_images names {len(folders)} folders for the {len(other_annotations)} files of "
            "other_annotations: name one for each, or none where they are all in IMAGES"
        )
    chosen = recipe_named(recipe)
    check_writable(json_file, html)
    dataset = load_dataset(annotations, images)
    others = [load_dataset(*other) for other in zip(other_annotations, folders, strict=True)]
    check_keeps((path for read in (dataset, *others) for path in read.files()), json_file, html)
    found = check(dataset, chosen, others)
    print(found.table())
    if json_file is not None:
        replace_text(json_file, json.dumps(found.to_json(), indent=1) + "\n")
    if html is not None:
        replace_text(html, check_page(found))
    return 1 if found.errors else 0


def convert(
    annotations: Positional[Annotations],
    images: Positional[Images],
    to: Literal["coco", "voc", "yolo"],
    output: Annotated[Path, arg(metavar="DIR", help="A new folder.")],
) -> None:
    """Write a data set's annotations in another format; images stay where they are (YOLO gets links).

    Args:
        to: The format.
    """
    from frcnn.data import load_dataset
    from frcnn.data.convert import convert

    dataset = load_dataset(annotations, images)
    written, folder = convert(dataset, to, output)
    print(dataset.summary())
    print(f"annotations  {written}\nimages       {folder}")


def show(
    annotations: Positional[Annotations],
    images: Positional[Images],
    output: Annotated[Path, arg(metavar="FILE", help="Ending in .jpg or .png.")] = Path("sheet.jpg"),
    count: int = 16,
    class_name: Annotated[str | None, default("NAME", "all", "Only images that have this class.")] = None,
    seed: int = 0,
) -> None:
    """Draw a sheet of images, taken at random, with their boxes.

    Args:
        count: How many images.
        seed: For the choice.
    """
    from frcnn.data import load_dataset
    from frcnn.data.sheet import sheet
    from frcnn.draw import encoded

    check_whole("count", count, 1, 400)
    check_whole("seed", seed, 0)
    if output.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise OptionError(f"output={output}: its name ends in .jpg or .png")
    check_writable(output)
    dataset = load_dataset(annotations, images)
    check_keeps(dataset.files(), output)
    content = encoded(sheet(dataset, count, class_name, seed), output)
    with replacing(output) as file:
        file.write(content)
    print(output)


COMMANDS: dict[str, Callable[..., Any]] = {"check": check, "convert": convert, "show": show}
