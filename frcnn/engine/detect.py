"""Detection over image files: annotated images, and the detections in two JSON files.

Nothing that exists is overwritten, and what is done stays: an image that cannot be used is listed and left
out, and a run that was stopped, by a signal or a full disk, can be continued.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from frcnn.as_pixels import visible
from frcnn.checked import OptionError, check_known, check_whole
from frcnn.draw import encoded
from frcnn.engine.formats import FORMATS, Format, coco_results, files_of
from frcnn.engine.interrupt import Interrupted, StopRequest
from frcnn.engine.result_lines import ResultLines
from frcnn.files import check_folder, replace_text, replacing
from frcnn.inference.sources import RESULTS, find_images
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared, check_size
from frcnn.read_image import ImageError, read_image
from frcnn.structures import Detections

DRAWN_AS_THEY_ARE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Annotated images keep these suffixes; others get `.png` behind them."""

AHEAD = 4
"""Images that may wait in memory to be drawn."""


class _Image(NamedTuple):
    """An image, where its drawing goes, and its pixels (HWC uint8 BGR), or why it cannot be used."""

    path: str | Path
    target: Path
    content: np.ndarray | str


@dataclass(frozen=True)
class DetectResult:
    """What `detect` has written, an earlier run that it continued included.

    detections: the JSON file of all images, and lines: the same line by line.
    drawings: the annotated images. boxes: how many detections are listed.
    failed: image -> why it could not be used.
    not_read: suffix -> how many files in the folders are images of formats that are not supported.
    resumed: images that the earlier run had done. seconds_per_image: of the others, from file to file.
    """

    detections: Path
    lines: Path
    drawings: list[Path]
    boxes: int
    failed: dict[str, str]
    not_read: dict[str, int]
    resumed: int
    seconds_per_image: float


def detect(
    model: Predictor,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    min_score: float = 0.3,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    draw: bool = True,
    resume: bool = False,
    shard: tuple[int, int] = (1, 1),
    classes: Sequence[str] = (),
    formats: Sequence[Format] = (),
) -> DetectResult:
    """Detect objects in image files and folders, the output folder left out where it lies in one of these.

    `model` is a FasterRCNN, or what its `optimize` returns; `batch_size` is as in its `stream`.
    `output` receives detections.json, a list with an entry {"image", "width", "height", "detections"} per
    image, where boxes are x1, y1, x2, y2 in its pixels and only scores of at least `min_score` are listed;
    and, with `draw`, the annotated images, whose path below `output` is the entry's "drawing". The entries
    are also written line by line as they are made, to detections.jsonl, behind a first line that holds the
    settings. An image that cannot be used is reported in `failed` and has an entry {"image", "error"}.

    shard: (k, n) takes every n-th image from the k-th on, so that n runs, wherever and whenever each runs, do
    together what one does alone. They may share an output folder: their files are detections-k-of-n.jsonl and
    .json, and the drawings have the names that one run gives them. It is part of the settings.

    classes: names of the only ones that are listed and drawn; all where none is named.

    formats: coco, yolo, voc and crops, each written into the folder of its name below `output`;
    `frcnn.engine.formats` says what they hold. An image's files are written with its drawing, COCO's one in
    the end, under the name that detections.json has. An entry's "name" is the image's in all these folders.

    No existing file is overwritten. With `resume` an earlier run into `output` is continued: what it has done
    is skipped, what failed is tried again. SIGINT (Ctrl-C) and SIGTERM end the run after the present image.

    Raises, before any work, ValueError for options out of range, for results of an earlier run without
    `resume` or with other settings, and for an output that would overwrite something, and FileNotFoundError
    for paths without images; OSError where something cannot be written (what is done stays); and
    `frcnn.engine.interrupt.Interrupted`.
    """
    check_options(min_score, size, batch_size, shard)
    model.check_size(size)
    check_known("class", classes, model.class_names)
    check_known("format", formats, FORMATS)
    output = Path(output)
    found = find_images(paths, output, model.data.channels)
    number, of = shard
    settings = {
        "model": model.fingerprint(),
        "size": list(size or model.data.size),
        "min_score": min_score,
        "draw": draw,
        "classes": sorted(classes) or None,
        "formats": sorted(formats) or None,
    }
    if of > 1:
        settings["images"] = _digest(found.images)  # with others, a shard would have other ones of them
    part = f"-{number}-of-{of}" if of > 1 else ""
    lines = ResultLines(output / f"{RESULTS}{part}.jsonl", settings, resume, _is_entry)
    listing = output / f"{RESULTS}{part}.json"
    coco = output / "coco" / listing.name
    mine = _named(found.images, lines.entries, formats)[number - 1 :: of]
    todo = [
        (path, name) for path, name in mine if not _is_done(lines.entries.get(str(path)), output, formats)
    ]
    # the files of an entry are the earlier run's
    new = [name for path, name in todo if "error" in lines.entries.get(str(path), {"error": ""})]
    targets = [output / name for name in new if draw]
    for name in new if formats else ():
        empty = {"image": "", "name": name, "width": 0, "height": 0, "detections": ()}
        targets += [output / file for file in files_of(empty, formats)]
    if not lines.entries:
        targets += [listing, *([coco] if "coco" in formats else [])]
    _refuse_to_overwrite(targets, [path for path, _ in found.images if isinstance(path, Path)])
    for kind in formats:
        check_folder(output / kind)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file: name a folder")
    output.mkdir(parents=True, exist_ok=True)

    def read(item: tuple[str | Path, Path]) -> tuple[Prepared | None, _Image]:
        path, target = item
        try:
            pixels = read_image(path)
            return model.prepare(pixels, size), _Image(path, target, visible(pixels))
        except (ImageError, OSError) as error:
            reason = str(error) if str(path) in str(error) else f"{path}: {error}"
            return None, _Image(path, target, reason)

    resumed = len(mine) - len(todo)
    failed: dict[str, str] = {}
    started = time.perf_counter()
    # Threads read ahead and one draws, so that the model waits for neither.
    stream = model.results(todo, read, batch_size)
    stopping = StopRequest("this image", "at once; the results of the images before are kept")
    with lines, stopping as stop, ThreadPoolExecutor(1) as artist, closing(stream):
        drawings: deque[Future[None]] = deque()
        results = tqdm(stream, total=len(todo), desc="detecting", unit="img", disable=None)
        for done, (image, detections) in enumerate(results, resumed + 1):
            if detections is None:
                failed[str(image.path)] = image.content
                lines.add({"image": str(image.path), "error": image.content})
            else:
                listed = detections.above(min_score)
                listed = listed.of(*classes) if classes else listed
                height, width = image.content.shape[:2]
                entry = {"image": str(image.path), "width": width, "height": height}
                entry["detections"] = listed.to_json()
                entry |= {"drawing": str(image.target)} if draw else {}
                entry |= {"name": str(image.target)} if formats else {}
                # The line goes first: an image whose line is there, but not its drawing, is done again.
                lines.add(entry)
                if draw or formats:
                    drawings.append(artist.submit(_write, output, entry, formats, listed, image.content))
                while len(drawings) > AHEAD:
                    drawings.popleft().result()
            if stop.requested and done < len(mine):
                raise Interrupted(
                    f"stopped after {done} of {len(mine)} images; their results are in {lines.path}",
                    stop.number,
                )
        for drawn in drawings:
            drawn.result()
    seconds = time.perf_counter() - started
    entries = list(lines.entries.values())
    replace_text(listing, json.dumps(entries, indent=1) + "\n")
    if "coco" in formats:
        coco.parent.mkdir(exist_ok=True)
        replace_text(coco, coco_results(entries))
    return DetectResult(
        listing,
        lines.path,
        [output / entry["drawing"] for entry in entries if "drawing" in entry],
        sum(len(entry.get("detections", ())) for entry in entries),
        failed,
        dict(found.not_read),
        resumed,
        seconds / max(1, len(todo)),
    )


def check_options(
    min_score: float, size: tuple[int, int] | None, batch_size: int, shard: tuple[int, int] = (1, 1)
) -> None:
    """Raises OptionError for a min_score outside 0 to 1, sides or a batch_size not positive, and no shard."""
    if not 0 <= min_score <= 1:
        raise OptionError(f"min_score={min_score}: it is a number from 0 to 1")
    check_size(size)
    check_whole("batch_size", batch_size, 1)
    if not 1 <= shard[0] <= shard[1]:
        raise OptionError(f"shard={shard[0]}/{shard[1]}: shards of N go from 1/N to N/N")


def _named(
    images: list[tuple[str | Path, Path]], entries: dict[str, dict], formats: Sequence[Format]
) -> list[tuple[str | Path, Path]]:
    """Each image with its drawing: an earlier run's, else a name that no other drawing has.

    Equal names from different folders get a number. Names that differ in case only are equal, as they are
    for some file systems; where a format has its own suffix, so are names that differ in theirs only.
    """

    def key(name: str | Path) -> str:
        return str(Path(name).with_suffix("") if {"yolo", "voc"} & {*formats} else name).lower()

    names = {image: entry.get("drawing", entry.get("name")) for image, entry in entries.items()}
    before = {image: name for image, name in names.items() if name is not None}
    taken = {key(name) for name in before.values()}
    result: list[tuple[str | Path, Path]] = []
    for path, relative in images:
        if str(path) in before:
            result.append((path, Path(before[str(path)])))
            continue
        if relative.suffix.lower() not in DRAWN_AS_THEY_ARE:
            relative = relative.with_name(f"{relative.name}.png")
        target, number = relative, 2
        while key(target) in taken:
            target = relative.with_stem(f"{relative.stem}_{number}")
            number += 1
        taken.add(key(target))
        result.append((path, target))
    return result


def _is_entry(entry: dict) -> bool:
    """Whether `detect` can have written it; its drawing is an image file below the output."""
    image, drawing = entry.get("image"), entry.get("drawing", entry.get("name", "a.png"))
    if not (isinstance(image, str) and isinstance(drawing, str)) or "\0" in image + drawing:
        return False
    path = Path(drawing)
    found = entry.get("detections", [])
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and path.suffix.lower() in DRAWN_AS_THEY_ARE
        and (isinstance(entry.get("error"), str) or isinstance(entry.get("detections"), list))
        and all(isinstance(one, dict) for one in found)
        # these raise for what they cannot be made of
        and ("name" not in entry or bool(files_of(entry, ("yolo", "crops")) and coco_results([entry])))
        and entry.get("name", drawing) == drawing
    )


def _digest(images: Sequence[tuple[str | Path, Path]]) -> str:
    """Of the images' names and order."""
    return hashlib.sha256(b"\n".join(os.fsencode(path) for path, _ in images)).hexdigest()


def _is_done(entry: dict | None, output: Path, formats: Sequence[Format]) -> bool:
    if entry is None or "error" in entry or (formats and "name" not in entry):
        return False
    files = [*(files_of(entry, formats) if formats else ()), entry.get("drawing", ".")]
    return all((output / file).exists() for file in files)


def _refuse_to_overwrite(targets: Iterable[Path], images: Sequence[Path]) -> None:
    existing = [target for target in targets if os.path.lexists(target)]
    if existing:
        first, more = existing[0], f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        inputs = {path.resolve() for path in images}
        what = "an input image" if first.resolve() in inputs else "which exists"
        raise ValueError(
            f"{first}, {what},{more} would be overwritten: choose an output folder that is new, such as "
            f"{first.parent / 'detections'}"
        )


def _write(
    output: Path, entry: dict, formats: Sequence[Format], found: Detections, image: np.ndarray
) -> None:
    """An image's drawing and its files of other formats."""
    crops = found.crops(image) if "crops" in formats else ()
    files = files_of(entry, formats, crops) if formats else {}
    if "drawing" in entry:
        files[Path(entry["drawing"])] = found.draw(image, 0)
    for name, content in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, bytes) else encoded(content, path)
        # what crops are called shows only now; those of an image that is done again are the same
        if name.parts[0] == "crops" and path.exists() and path.read_bytes() != content:
            raise FileExistsError(errno.EEXIST, "exists and is not overwritten: choose another output", path)
        try:
            with replacing(path) as file:
                file.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
