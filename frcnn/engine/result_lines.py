"""Results that grow line by line: what is written stays, and a stopped run can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from frcnn.inference.sources import HEADER


class ResultLines:
    """A file of JSON lines: the settings of the run first, then one entry {"image": …} per image.

    entries: image -> its entry, in the order of the file; of several for an image the last counts.

    is_entry: whether an object can be an entry, as a file may have been changed by others.

    Opening it reads an earlier run's entries if `resume` is set and changes nothing yet; as a context manager
    it then takes new ones. A last line that was cut, by a full disk or the end of the process, is dropped.

    Raises ValueError if there is an earlier file and `resume` is not set, or one of other settings, or one
    that is something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool, is_entry: Callable[[dict], bool]):
        self.path = path
        self.is_entry = is_entry
        self.entries: dict[str, dict] = {}
        self._header = _line({HEADER: settings})
        self._kept = 0
        self._file: BinaryIO  # as a context manager
        if os.path.lexists(path):
            if not resume:
                raise ValueError(
                    f"{path} holds the results of an earlier run: pass resume=True to go on with it, or "
                    "choose another output"
                )
            self._read(path.read_bytes(), settings)

    def _read(self, content: bytes, settings: dict[str, Any]) -> None:
        if self._header.startswith(content):
            return  # stopped before anything was written
        whole = content[: content.rfind(b"\n") + 1]
        try:
            header, *entries = [json.loads(line) for line in whole.splitlines()]
            before = dict(header[HEADER])
            if not all(isinstance(entry, dict) and self.is_entry(entry) for entry in entries):
                raise ValueError
            self.entries = {entry["image"]: entry for entry in entries}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{self.path} is not, or not only, what detection writes: choose another output"
            ) from None
        for name, value in settings.items():
            if before.get(name) != value:
                change = f"{name}={before.get(name)!r}, now {name}={value!r}"
                change = "another model" if name == "model" else change  # its value is a checksum
                raise ValueError(
                    f"{self.path} comes from a run with other settings ({change}): resume with those, or "
                    "choose another output"
                )
        self._kept = len(whole)

    def __enter__(self) -> ResultLines:
        self._file = open(self.path, "r+b" if self._kept else "wb", buffering=0)
        self._file.truncate(self._kept)
        self._file.seek(self._kept)
        if not self._kept:
            self._write(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: dict) -> None:
        """Write an entry; when this returns it is on the disk. Raises OSError, which names the file."""
        self._write(_line(entry))
        self.entries[entry["image"]] = entry

    def _write(self, line: bytes) -> None:
        try:
            if self._file.write(line) != len(line):  # the disk took a part: the rest says why
                self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def _line(value: dict) -> bytes:
    return json.dumps(value).encode() + b"\n"
