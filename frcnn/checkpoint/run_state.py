"""What a training run needs to be resumed, in its checkpoint: read whole or refused.

The checkpoint is what `frcnn.checkpoint.save` says, with these besides:

    optimizer    the optimizer's state
    meta         also epoch, iter
    training     what resuming needs besides: settings that must not change, random states per process,
                 history of metrics, bad images, the log's sums since its last line, the number of threads
                 (absent from a file that holds weights only)
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.save import checksum

FORMAT = 2


def read_training_state(path: Path) -> dict[str, Any]:
    """The whole content of a last.pth that training wrote. Raises CheckpointError."""
    remedy = (
        f"Delete it and train anew, in another work_dir or from the best weights so far: weights={best}"
        if (best := path.with_name("best.pth")).is_file()
        else "Delete it and train anew"
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
    legacy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = legacy
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
