"""Published files: where they are, and a download that survives broken transfers.

Files land in torch.hub's folder (``torch.hub.get_dir()/checkpoints``), so a file placed there by hand is
used without a download.

Nothing is used before its sha256 is checked. Of torchvision's backbones the whole hash is known; of all other
files only the eight hex digits in their names. These show that a file is whole, but 32 bits can be forged:
there one trusts the store and the connection to it. Of training logs no hash is known; they are drawn, and no
more. Nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from frcnn.checkpoint.transfer import BrokenTransfer, DownloadError, transfer
from frcnn.files import digest_of

STORES = (
    "https://open-mmlab.s3.ap-northeast-2.amazonaws.com/mmdetection/",
    "https://download.openmmlab.com/mmdetection/",
)
"""MMDetection's published model store and its mirror."""

SHA256 = {
    "resnet18-f37072fd.pth": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet34-b627a593.pth": "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet101-63fe2227.pth": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet152-394f9c45.pth": "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
}
"""Whole hashes of published files, as several public repositories record them independently."""

ATTEMPTS = 4
"""Transfers tried per address; each goes on where the one before broke off."""
BACKOFF_SECONDS = 0.1
TOTAL_SECONDS = 6 * 3600.0
"""Longest time for a file, over all attempts and addresses, waiting for other processes included."""


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
    that cannot resume is read from the start. Processes that ask at once take turns. A file has at most
    2 GiB, a transfer brings at least 10 kB/s, and everything together takes at most six hours.

    Args:
        addresses: the same file's addresses, tried in order; its name ends in ``-<8 hex digits>.pth``, or
            in ``.log.json``.
        folder: where to keep it; default `cache_dir()`.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: no address delivered a file with the right sha256, or it cannot be stored.
        ValueError: the name does not say how the file's sha256 begins.
    """
    folder = cache_dir() if folder is None else folder
    name = addresses[0].rsplit("/", 1)[-1]
    sha256 = "" if name.endswith(".log.json") else SHA256.get(name) or sha256_prefix(name)
    target, part = folder / name, folder / f"{name}.part"
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        if _is_there(target, sha256):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder / f".{name}.lock", name, deadline):
            if _is_there(target, sha256):  # another process was faster
                return target
            failures = []
            for address in addresses:
                failure = _fetch(address, part, sha256, deadline, progress)
                if not failure:
                    os.replace(part, target)
                    return target
                failures.append(failure)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{target} cannot be stored: {error}") from error
    raise DownloadError(
        "\n".join(failures)
        + f"\nWithout a connection: download {addresses[0]} elsewhere and put it at {target}"
    )


def _is_there(target: Path, sha256: str) -> bool:
    if not target.exists():
        return False
    if digest_of(target).startswith(sha256):
        return True
    raise DownloadError(
        f"{target}: its sha256 does not begin with {sha256}, so it is damaged or another file; "
        "delete it to download it again"
    )


def _fetch(address: str, part: Path, sha256: str, deadline: float, progress: bool) -> str:
    """Complete ``part`` from one address; returns why that failed, or nothing."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2**attempt)
        try:
            transfer(address, part, deadline, progress)
        except BrokenTransfer as error:
            reason = str(error)
            continue
        except DownloadError as error:
            return f"{address}: {error}"
        if digest_of(part).startswith(sha256):
            return ""
        part.unlink()  # whatever it holds is not the start of this file
        reason = f"what it sent has another sha256 than {sha256}"
    return f"{address}: {reason}"


@contextlib.contextmanager
def _turn(path: Path, name: str, deadline: float) -> Iterator[None]:
    """Hold the lock file ``path``, so that processes do not race; says so where it has to wait."""
    lock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"waiting for another process that downloads {name}", file=sys.stderr)
            lock.acquire(timeout=max(0, deadline - time.monotonic()))
    except filelock.Timeout:
        raise DownloadError(f"{name}: another process has held {path} for too long; is it stopped?") from None
    try:
        yield
    finally:
        lock.release()
