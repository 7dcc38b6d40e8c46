"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is a dict of plain values and tensors, so `torch.load(weights_only=True)` reads it. Its layout is
MMDetection's, so its weights load wherever MMDetection's do, `frcnn.load_checkpoint` included:

    state_dict   parameters and buffers
    optimizer    the optimiser's state
    meta         recipe (a plain dict), dataset_meta {"classes": names}, epoch, iter
    training     what resuming needs besides: settings that must not change, random states per process,
                 history of metrics, bad images, the log's sums since its last line, the number of threads
                 (absent from a file that holds weights only)
    checksum     SHA-256 of all of the above: the archive's own CRC is not looked at by torch.load
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frcnn.checkpoint.load import CheckpointError
from frcnn.files import replacing

FORMAT = 2


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically, with a checksum: who reads `path`, even after a crash, finds the old file or the new.

    Raises OSError, for example where the disk is full.
    """
    try:
        with replacing(path) as file:
            torch.save({**content, "checksum": checksum(content)}, file)
    except (OSError, RuntimeError) as error:
        # Where a write fails, torch complains of the position in its archive; the cause is the context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(
            cause.errno,
            f"{path} could not be written ({cause.strerror or cause}); an older one is as it was: make room, "
            "then resume from there",
        ) from None


def checksum(content: Any) -> str:
    """SHA-256, in hexadecimal, of tensors and plain values in dicts, lists and tuples."""
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, item in value.items():
            digest.update(repr(key).encode())
            _update(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)}".encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(f"{type(value).__name__} {value!r}".encode())


def read_training_state(path: Path) -> dict[str, Any]:
    """The whole content of a last.pth that training wrote. Raises CheckpointError."""
    remedy = (
        "Delete it and train anew, in another work_dir or from the best weights so far: "
        f"weights={path.with_name('best.pth')}"
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # a damaged file may fail anywhere in torch's reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is truncated, damaged, or of another program "
            f"({reason}). {remedy}"
        ) from None
    training = content.get("training") if isinstance(content, dict) else None
    if not isinstance(training, dict) or training.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} does not hold the state of a training run of this version of frcnn; its weights "
            "may still do as a start (weights=)"
        )
    if content.pop("checksum", None) != checksum(content):
        raise CheckpointError(
            f"{path} is damaged: its checksum is not that of its content, so a bit or more of it has changed "
            f"since it was written. {remedy}"
        )
    return content


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
