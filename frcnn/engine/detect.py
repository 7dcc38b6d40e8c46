"""Detection over image files: annotated pictures and one JSON file."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from frcnn.detector import FasterRCNN
from frcnn.prefetch import prepared_ahead
from frcnn.preprocess import read_image
from frcnn.structures import Detections

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

AHEAD = 4
"""Pictures read before the model takes them, and drawn after it, that may wait in memory."""


@dataclass(frozen=True)
class DetectResult:
    """What `detect` wrote. failed: picture -> why it could not be read."""

    detections: Path
    pictures: list[Path]
    boxes: int
    failed: dict[str, str]
    seconds_per_image: float


def find_images(paths: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """(picture, its path below the output folder) for files and, recursively, folders.

    Raises FileNotFoundError for a path that does not exist or a folder without pictures.
    """
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise FileNotFoundError(f"{path}: no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    return _told_apart(found)


def detect(
    model: FasterRCNN,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    min_score: float = 0.3,
    size: tuple[int, int] | None = None,
    draw: bool = True,
) -> DetectResult:
    """Detect objects in image files and folders.

    `output` receives detections.json, a list with an entry {"image", "width", "height", "detections"} per
    picture, where boxes are x1, y1, x2, y2 in its pixels and only scores of at least `min_score` are listed,
    and, with `draw`, the annotated pictures. A picture that cannot be read is reported in `failed` and in the
    JSON file; the others are still done.
    """
    output = Path(output)
    entries, written, failed = [], [], {}
    boxes, seconds = 0, 0.0
    images = find_images(paths)
    # One thread reads ahead and one draws, so that the model waits for neither.
    pictures = prepared_ahead([path for path, _ in images], _read, threads=1, ahead=AHEAD)
    with ThreadPoolExecutor(1) as artist:
        drawings: deque[Future[None]] = deque()
        for (path, relative), image in zip(
            tqdm(images, desc="detecting", unit="img", disable=None), pictures, strict=True
        ):
            if isinstance(image, ValueError):
                failed[str(path)] = str(image)
                entries.append({"image": str(path), "error": str(image)})
                continue
            started = time.perf_counter()
            found = model.predict(image, size).above(min_score).to("cpu")
            seconds += time.perf_counter() - started
            boxes += len(found)
            height, width = image.shape[:2]
            detections = found.to_json()
            entries.append({"image": str(path), "width": width, "height": height, "detections": detections})
            if draw:
                target = output / relative
                drawings.append(artist.submit(_draw, target, found, image, min_score))
                written.append(target)
            while len(drawings) > AHEAD:
                drawings.popleft().result()
        for drawing in drawings:
            drawing.result()
    output.mkdir(parents=True, exist_ok=True)
    listing = output / "detections.json"
    listing.write_text(json.dumps(entries, indent=1) + "\n")
    return DetectResult(listing, written, boxes, failed, seconds / max(1, len(entries) - len(failed)))


def _read(path: Path) -> np.ndarray | ValueError:
    try:
        return read_image(path)
    except ValueError as error:
        return error


def _draw(path: Path, found: Detections, image: np.ndarray, min_score: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), found.draw(image, min_score)):
        raise OSError(f"{path}: the annotated picture could not be written")


def _told_apart(found: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Equal names from different folders get a number, so that no picture overwrites another."""
    taken: set[Path] = set()
    result = []
    for path, relative in found:
        target, number = relative, 2
        while target in taken:
            target = relative.with_stem(f"{relative.stem}_{number}")
            number += 1
        taken.add(target)
        result.append((path, target))
    return result
