"""Files written whole or not at all, and told apart by their content."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` when the block ends without an exception.

    Whoever reads `path`, even after a crash or on a full disk, finds the old file or the whole new one. The
    content is written beside it to `.<name>.tmp`, whose name is the same every time, so that a killed process
    leaves at most one such file and the next writer takes it over.

    Raises OSError, for example where the disk is full; `path` is then as before.
    """
    path = Path(path)
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself survives a power cut only once the folder is written
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def temporary_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def set_aside(path: Path) -> None:
    """Give a file that is in the way, if there is one, the first free name: log.jsonl becomes log.1.jsonl."""
    number = 1
    while path.exists():
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not os.path.lexists(free):
            path.rename(free)
        number += 1


def check_folder(folder: str | Path) -> None:
    """Find out before hours of work whether `folder` is there or can be made, and takes files.

    Raises OSError where a file is in its place or its nearest existing parent may not be written to.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: a file is there, so {folder} cannot be the output folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} may not be written to, so {folder} cannot be the output folder")


def check_writable(*paths: str | Path | None) -> None:
    """Find out before hours of work whether files can be written when they are done; None is no file.

    Raises OSError where a file's folder is missing or may not be written to, or where it is a folder itself.
    """
    for path in [Path(path) for path in paths if path is not None]:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a file is to be written")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{path}: its folder may not be written to")


def check_keeps(inputs: Iterable[str | Path], *outputs: str | Path | None) -> None:
    """Find out whether writing the outputs would overwrite what is read, under whatever name; None is none.

    Raises ValueError where one of `inputs` is the file at an output, or the one that it is written to before.
    """
    paths = [Path(path) for path in outputs if path is not None]
    present = {
        _identity(file): path for path in paths for file in (path, temporary_of(path)) if file.exists()
    }
    for file in map(Path, inputs if present else ()):
        if file.exists() and (path := present.get(_identity(file))):
            raise ValueError(f"{path} would overwrite {file}, which is read: write to another place")


def digest_of(*paths: Path, kind: str = "sha256") -> str:
    """The hash, in hexadecimal, of the content of files, one behind the other."""
    digest = hashlib.new(kind)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino
