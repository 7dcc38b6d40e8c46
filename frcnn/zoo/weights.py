"""Published files: where they are, and a download that survives broken transfers.

Files land in torch.hub's folder (``torch.hub.get_dir()/checkpoints``), so a file placed there by hand is
used without a download. Nothing is used before its sha256 matches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

STORES = (
    "https://open-mmlab.s3.ap-northeast-2.amazonaws.com/mmdetection/",
    "https://download.openmmlab.com/mmdetection/",
)
"""MMDetection's published model store and its mirror."""

ATTEMPTS = 4
"""Transfers tried per address; each goes on where the one before broke off."""
TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 20


class DownloadError(OSError):
    """A published file could not be had; the message says which file to put where."""


def checkpoint_addresses(checkpoint: str) -> tuple[str, ...]:
    """Addresses of a published checkpoint, given its path in the model store."""
    return tuple(store + checkpoint for store in STORES)


def sha256_prefix(name: str) -> str:
    """The eight hex digits that end a published file's name and begin its sha256."""
    match = re.search(r"-([0-9a-f]{8})\.(?:pth|pkl|safetensors)$", name)
    if match is None:
        raise ValueError(f"{name}: a published file's name ends in -<8 hex digits>.pth")
    return match.group(1)


def cache_dir() -> Path:
    """Folder of downloaded files: ``torch.hub.get_dir()/checkpoints``."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def download(addresses: Sequence[str], folder: Path | None = None, progress: bool = True) -> Path:
    """The local path of a published file, downloaded unless it is there already.

    A broken transfer leaves ``<name>.part`` and the next attempt, or the next run, resumes it; a server
    that cannot resume is read from the start. Processes that ask at once take turns.

    Args:
        addresses: the same file's addresses, tried in order; its name ends in ``-<8 hex digits>.pth``.
        folder: where to keep it; default `cache_dir()`.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: no address delivered a file with the right sha256.
    """
    folder = cache_dir() if folder is None else folder
    name = addresses[0].rsplit("/", 1)[-1]
    prefix = sha256_prefix(name)
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder / f"{name}.lock"):
        if target.exists():
            if _sha256(target).startswith(prefix):
                return target
            raise DownloadError(
                f"{target}: its sha256 does not begin with {prefix}, so it is damaged or another file; "
                "delete it to download it again"
            )
        part = folder / f"{name}.part"
        failures = []
        for address in addresses:
            try:
                _fetch(address, part, prefix, progress)
            except DownloadError as error:
                failures.append(str(error))
                continue
            os.replace(part, target)
            return target
    raise DownloadError(
        "\n".join(failures)
        + f"\nWithout a connection: download {addresses[0]} elsewhere and put it at {target}"
    )


def _fetch(address: str, part: Path, prefix: str, progress: bool) -> None:
    """Complete ``part`` from one address, or raise DownloadError."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.1 * 2**attempt)
        try:
            complete = _transfer(address, part, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise DownloadError(f"{address}: the server answered {error.code} {error.reason}") from error
            if error.code == 416:  # nothing lies beyond what we hold: it is whole, or not this file
                complete = True
            else:
                reason = f"the server answered {error.code} {error.reason}"
                continue
        except (OSError, urllib.error.URLError) as error:
            reason = f"no connection ({getattr(error, 'reason', error)})"
            continue
        if not complete:
            reason = f"the transfer broke off after {part.stat().st_size} bytes"
            continue
        if _sha256(part).startswith(prefix):
            return
        part.unlink()  # whatever it holds is not the start of this file
        reason = f"what it sent has another sha256 than {prefix}…"
    raise DownloadError(f"{address}: {reason}")


def _transfer(address: str, part: Path, progress: bool) -> bool:
    """Append the missing end of ``part``; False if the server closed before the announced length."""
    held = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "frcnn"})
    if held:
        request.add_header("Range", f"bytes={held}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {held}-"
        )
        if not resumed:
            held = 0
            if response.status == 206:  # another range than the one asked for is of no use
                part.unlink()
                return False
        length = response.headers.get("Content-Length")
        total = None if length is None else held + int(length)
        with open(part, "ab" if resumed else "wb") as out:
            for written in _copy(response, out, held):
                if progress and sys.stderr.isatty():
                    _show(part.name.removesuffix(".part"), written, total)
        if progress and sys.stderr.isatty():
            sys.stderr.write("\n")
    return total is None or part.stat().st_size == total


def _copy(source: BinaryIO, out: BinaryIO, held: int) -> Iterator[int]:
    """Copy in pieces, yielding how many bytes the file has."""
    while piece := source.read(_CHUNK):
        out.write(piece)
        held += len(piece)
        yield held


def _show(name: str, written: int, total: int | None) -> None:
    megabytes = f"{written / 1e6:.1f} MB"
    if total:
        filled = 30 * written // total
        bar = "#" * filled + "." * (30 - filled)
        megabytes = f"[{bar}] {written / 1e6:.1f} of {total / 1e6:.1f} MB"
    sys.stderr.write(f"\r{name} {megabytes}")
    sys.stderr.flush()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, where the system has such locks, so that processes do not race."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # whoever held it before has removed the file; only a lock on the one that is there counts
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
