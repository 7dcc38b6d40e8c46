"""From what the user names to single images: folders and patterns become the files in them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from frcnn.as_pixels import Image, is_one_image
from frcnn.read_image import image_suffixes, is_url

NOT_READ = frozenset(
    ".arw .cr2 .cr3 .cur .dds .dng .eps .exr .hdr .heic .heif .ico .jxl .jxr .nef .orf .pcx .psd .raf .rw2 "
    ".svg .tga .xcf".split()
)
"""Suffixes of images that no decoder here reads."""


RESULTS = "detections"
"""How the files that `frcnn detect` writes begin: .jsonl, line by line, and .json; shards add -k-of-n.
A folder that holds the former is one of results."""

HEADER = "frcnn_detect"
"""What the first line of the former holds the settings under."""


@dataclass(frozen=True)
class FoundImages:
    """images: each file or URL with the path of its drawing below the output folder. not_read: suffix ->
    files of formats that are not supported, left out."""

    images: list[tuple[str | Path, Path]]
    not_read: Counter[str] = field(default_factory=Counter)


def expand(images: Image | Iterable[Image], channels: int = 3) -> Image | Iterable[Image]:
    """What `predict` is given, with every folder and pattern in it replaced by its images, in sorted order.

    A path that exists, a URL (http, https), an array, a tensor and a Pillow image stay as they are: one image
    in, one image out. A folder is searched recursively; a pattern is `glob`'s, with ** for any depth, and
    matches that are not image files are left out. Of several images, each is looked at when its turn comes,
    so that they may be any number.

    Raises FileNotFoundError for a folder or a pattern without images, TypeError for what is no image at all.
    """
    if is_one_image(images):
        return (
            _named_by(images, channels)
            if isinstance(images, (str, Path)) and _names_several(images)
            else images
        )
    try:
        several = iter(images)
    except TypeError:
        kinds = "a path, URL, array, tensor or Pillow image, or an iterable of these"
        raise TypeError(f"images to predict are {kinds}, not {type(images).__name__}") from None
    return (image for named in several for image in _named_by(named, channels))


def _named_by(image: Image, channels: int) -> Sequence[Image]:
    if not isinstance(image, (str, Path)) or not _names_several(image):
        return [image]
    if Path(image).is_dir():
        return [path for path, _ in find_images([image], channels=channels).images]
    return _matches(image, image_suffixes(channels))


def _matches(pattern: str | Path, suffixes: frozenset[str]) -> list[Path]:
    matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
    files = [path for path in matches if path.suffix.lower() in suffixes and path.is_file()]
    if not files:
        raise FileNotFoundError(f"{pattern}: no image matches this pattern")
    return files


def check_there(paths: Iterable[str | Path]) -> None:
    """Raises FileNotFoundError for what is no file, folder or address, and no pattern either."""
    for path in paths:
        if not ("://" in str(path) or Path(path).exists() or glob.has_magic(str(path))):
            raise FileNotFoundError(f"{path}: no such file or folder")


def _names_several(path: str | Path) -> bool:
    if isinstance(path, str) and is_url(path):
        return False
    return Path(path).is_dir() or (glob.has_magic(str(path)) and not Path(path).exists())


def find_images(
    paths: Sequence[str | Path], output: str | Path | None = None, channels: int | None = 3
) -> FoundImages:
    """The images of files, URLs, patterns and, recursively, folders, each once however it is spelled.

    What `frcnn detect` has written into a folder is left out: `output`, if it lies inside, and inner folders
    that hold the results of earlier runs.

    Raises FileNotFoundError for a path that does not exist and a folder or a pattern without images.
    """
    suffixes = image_suffixes(channels)
    found: dict[str, tuple[str | Path, Path]] = {}
    not_read: Counter[str] = Counter()
    for named in paths:
        path = Path(named)
        if is_url(named):
            found.setdefault(str(named), (named, Path(Path(urlsplit(str(named)).path).name or "image")))
        elif path.is_dir():
            listings = path.rglob(f"{RESULTS}*.jsonl")
            results = {listing.parent for listing in listings if _of_detection(listing)} - {path}
            if output is not None and path.resolve() in Path(output).resolve().parents:
                results.add(path / Path(output).resolve().relative_to(path.resolve()))
            files = sorted(p for p in path.rglob("*") if p.is_file() and results.isdisjoint(p.parents))
            inside = [p for p in files if p.suffix.lower() in suffixes]
            others = Counter(p.suffix.lower() for p in files if p.suffix.lower() in NOT_READ)
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no images ({', '.join(sorted(suffixes))}) in it{in_words(others)}"
                )
            not_read += others
            for p in inside:
                found.setdefault(os.path.abspath(p), (p, p.relative_to(path)))
        elif path.exists():
            found.setdefault(os.path.abspath(path), (path, Path(path.name)))
        elif glob.has_magic(str(path)):
            for p in _matches(path, suffixes):
                found.setdefault(os.path.abspath(p), (p, Path(p.name)))
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    return FoundImages(list(found.values()), not_read)


def _of_detection(listing: Path) -> bool:
    """Whether `frcnn detect` wrote it: others' files may have the name too."""
    begins = f'{{"{HEADER}":'.encode()
    try:
        with open(listing, "rb") as file:
            return file.read(len(begins)) == begins
    except OSError:
        return False


def in_words(not_read: dict[str, int]) -> str:
    """ ", but …" of the files that are images of unsupported formats; "" if there are none."""
    counts = ", ".join(f"{suffix} {count}" for suffix, count in sorted(not_read.items()))
    return f", but files of formats that are not supported: {counts}" if counts else ""
