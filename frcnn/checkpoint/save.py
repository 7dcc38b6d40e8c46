"""Writes checkpoints, whole or not at all: what training, `FasterRCNN.save` and ``frcnn convert`` leave.

A ``.pth`` file is a dict of plain values and tensors, so `torch.load(weights_only=True)` reads it. Its layout
is MMDetection's, so its weights load wherever MMDetection's (2.x and 3.x) do, `frcnn.load` included:

    state_dict   parameters and buffers
    meta         recipe (a plain dict), dataset_meta {"classes": names}, CLASSES (the same)
    checksum     SHA-256 of all of the above: the archive's own CRC is not looked at by torch.load

and what training adds (see `frcnn.checkpoint.run_state`). A ``.safetensors`` file holds the tensors, and
recipe and class names as JSON in its metadata, under "frcnn".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frcnn.checked import OptionError
from frcnn.checkpoint.load import CheckpointError, check_numbers
from frcnn.checkpoint.plain import to_plain
from frcnn.checkpoint.torch_file import reading
from frcnn.config import Recipe
from frcnn.files import check_writable, replacing

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN

SUFFIXES = (".safetensors", ".pth")


def save_model(model: FasterRCNN, path: str | Path) -> None:
    """Write a model's weights, configuration and class names; `frcnn.load` gives the same model back.

    The recipe in the file has the model's configuration and data settings and, as a model knows no schedule,
    the default one.

    path: ends in .pth or .safetensors; replaced whole if it exists, else created with the usual permissions.

    Raises ValueError for another ending, CheckpointError for weights that are not finite, and OSError where
    the file cannot be written; what was there before still is.
    """
    path = Path(path)
    check_suffix(path)
    check_writable(path)
    with reading("the model"):
        check_numbers(model.state_dict())
    save_weights(path, model.state_dict(), Recipe("faster_rcnn", model.config, model.data), model.class_names)


def check_suffix(path: Path) -> None:
    """Raises ValueError for a path whose ending names no format that is written."""
    if path.suffix not in SUFFIXES:
        raise OptionError(f"{path}: the name must end in .safetensors (ours) or .pth (MMDetection's)")


def save_weights(
    path: Path, state: Mapping[str, Tensor], recipe: Recipe | None, class_names: Sequence[str]
) -> None:
    """Write weights in the format of the path's ending, from any device. Raises OSError, CheckpointError."""
    # memory of their own, so that a part of a larger tensor is written alone
    tensors = {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in state.items()}
    if path.suffix == ".pth":
        save_checkpoint(path, weights_content(tensors, recipe, class_names))
        return
    from safetensors.torch import save

    plain = None if recipe is None else to_plain(recipe)
    metadata = json.dumps({"classes": list(class_names), "recipe": plain})
    try:
        data = save(tensors, metadata={"format": "pt", "frcnn": metadata})
    except UnicodeEncodeError as error:  # half of a surrogate pair, which a pickle can hold
        raise CheckpointError(f"{path}: a tensor's name is no text that a file holds ({error})") from None
    with replacing(path) as file:
        file.write(data)


def weights_content(
    state: Mapping[str, Tensor], recipe: Recipe | None, class_names: Sequence[str], **progress: int
) -> dict[str, Any]:
    """state_dict and meta of a .pth file. progress: epoch and iter, for meta."""
    names = tuple(class_names)
    meta: dict[str, Any] = {"dataset_meta": {"classes": names}, "CLASSES": names, **progress}
    if recipe is not None:
        meta["recipe"] = to_plain(recipe)
    return {"state_dict": dict(state), "meta": meta}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically, with a checksum.

    Whoever reads `path`, even after a crash, finds the old file or the new.
    Raises OSError, for example where the disk is full.
    """
    try:
        with replacing(path) as file:
            torch.save({**content, "checksum": checksum(content)}, file)
    except (OSError, RuntimeError) as error:
        # Where a write fails, or a signal handler raises in its midst (a loader's worker has died), torch
        # complains of the position in its archive; the cause is the context.
        cause = error if isinstance(error, OSError) else error.__context__ or error
        if not isinstance(cause, OSError):
            raise cause from None
        raise OSError(
            cause.errno,
            f"{path} could not be written ({cause.strerror or cause}): make room, then "
            + ("resume from the older one, which is as it was" if path.exists() else "start again"),
        ) from None


def checksum(content: Any) -> str:
    """SHA-256, in hexadecimal, of tensors and plain values in dicts, lists and tuples."""
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
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
