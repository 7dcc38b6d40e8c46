"""Annotations of large files as packed arrays, parsed once and not by every process of every run.

A cache's file is named by the hash of the annotation file's content, so it is never out of date. It is
numpy's npz, read without pickles; each array has a checksum, and what is damaged is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.lib.format import read_array

from frcnn.files import digest_of, replacing

LEAST = 64 << 20
"""Bytes of an annotation file that is worth it: parsing this much takes some ten seconds."""
RULES = 1
"""Goes up with every change of what is checked or packed."""
OTHERS = "others"

Packed = tuple[dict[str, np.ndarray], Any]
"""Arrays by name, and other values as JSON has them."""


def packed(path: Path, make: Callable[[], Packed]) -> Packed:
    """What `make` makes of the annotation file `path`, or has made of the same content before.

    Processes that want to make the same take turns. A folder that cannot be written, or locked, is only read.
    """
    try:
        before = os.stat(path)
        if before.st_size < LEAST:
            return make()
        place = folder() / f"{digest_of(path, kind='blake2b')[:40]}-{RULES}.npz"
        if (found := _read(place)) is not None:  # it is there whole or not at all, so this needs no turn
            return found
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{place}.lock")
        lock.acquire()
    except (OSError, ValueError, NotImplementedError):
        return make()  # of the annotation file, which `make` reports, of the cache, or without locks there
    try:
        if (found := _read(place)) is None:
            found = make()
            content: dict[str, Any] = {**found[0]}
            content[OTHERS] = np.frombuffer(json.dumps(found[1]).encode(), np.uint8)
            with contextlib.suppress(OSError):
                if _version(os.stat(path)) == _version(before):  # else the hash is of another content
                    with replacing(place) as out:
                        np.savez(out, **content)
        return found
    finally:
        lock.release()


def folder() -> Path:
    """Where the files are; whoever wants the space may delete them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frcnn" / "annotations"


def _version(found: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file's content."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(place: Path) -> Packed | None:
    arrays = {}
    try:
        with zipfile.ZipFile(place) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    arrays[name.removesuffix(".npy")] = read_array(member, allow_pickle=False)
                    if member.read(1):  # only at its end is a checksum compared
                        raise ValueError(f"{name} holds more than its shape says")
        others = json.loads(arrays.pop(OTHERS).tobytes())
    except Exception:  # a damaged zip may say that it is encrypted, of another compression, too large, …
        return None
    return arrays, others
