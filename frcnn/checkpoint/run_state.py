"""What a training run needs to be resumed, in its checkpoint: read whole or refused.

The checkpoint has the layout that `frcnn.checkpoint.save` describes, and besides:

    optimizer    the optimizer's state
    meta         also epoch, iter
    training     what resuming needs besides: settings that must not change, random states per process,
                 history of metrics, bad images, the log's sums since its last line, the number of threads,
                 the averages of the weights if there are any (absent from a file that holds weights only)
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn.checkpoint.save import checksum
from frcnn.checkpoint.torch_file import CheckpointError, read_torch_file, reading

FORMAT = 5

OPTIMIZER_STATES = ("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq")
"""What SGD and AdamW keep of a parameter."""

TIMED = {"time", "data_time"}
SUMMED = TIMED | {
    *("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"),
    *("loss", "acc", "grad_norm", "loss_scale", "skipped"),
}
"""What the log sums up of a step; the losses of one that was not finite are not among it."""


def read_training_state(path: Path) -> dict[str, Any]:
    """The whole content of a last.pth that training wrote, each field of the kind that training writes.

    Raises:
        CheckpointError: no such file, or one that is damaged, of another program, or not made by training.
    """
    remedy = remedy_for(path)
    content = read_torch_file(path, remedy).whole()
    training = content.get("training") if isinstance(content, dict) else None
    if not isinstance(training, dict) or training.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} does not hold the state of a training run of this version of frcnn; its weights "
            "may still do as a start (weights=)"
        )
    with reading(path, remedy):
        if content.pop("checksum", None) != checksum(content):
            raise CheckpointError(
                "damaged: its checksum is not that of its content, so a bit or more of it has changed since "
                f"it was written; {remedy}"
            )
        for field, fits in _FIELDS.items():
            try:
                fitting = fits(reduce(getitem, field.split("."), content))
            except (TypeError, LookupError, AttributeError):
                fitting = False
            if not fitting:
                raise CheckpointError(f"{field} is not what a training run writes there; {remedy}")
        if any(entry["epoch"] > content["meta"]["epoch"] for entry in training["history"]):
            raise CheckpointError(f"training.history goes beyond meta.epoch; {remedy}")
    return content


def remedy_for(path: Path) -> str:
    """What to do where a last.pth is damaged."""
    best = path.with_name("best.pth")
    anew = "delete it and train anew"
    return (
        f"{anew}, in another work_dir or from the best weights so far: weights={best}"
        if best.is_file()
        else anew
    )


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _evaluation(entry: Any) -> bool:
    """Whether these are an epoch and its metrics: -1 to 1, and of losses any number."""
    names = all(re.fullmatch(r"epoch|(bbox|val)_\w{1,60}", name, re.ASCII) for name in entry)
    numbers = all(type(number) in (int, float) for number in entry.values())
    metrics = [number for name, number in entry.items() if name.startswith("bbox_")]
    within = "bbox_mAP" in entry and all(-1 <= number <= 1 for number in metrics)
    return names and numbers and within and _natural(entry["epoch"])


def _log(sums: Any, counts: Any) -> bool:
    """Whether these are finite sums, each of so many numbers."""
    finite = all(type(value) in (int, float) and math.isfinite(value) for value in sums.values())
    names = sums.keys() == counts.keys() and (not sums or TIMED <= sums.keys() <= SUMMED)
    return finite and names and all(_natural(n) and n > 0 for n in counts.values())


def _scale(value: Any, steps: Any) -> bool:
    return type(value) is float and 0 < value < math.inf and _natural(steps)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: all(isinstance(tensor, Tensor) for tensor in value.values()),
    "optimizer.state": lambda value: all(
        _natural(index) and tuple(value[index]) in OPTIMIZER_STATES for index in value
    ),
    "meta.iter": _natural,
    "meta.epoch": _natural,
    "meta.recipe": lambda value: isinstance(value, dict),
    "training.settings": lambda value: (
        isinstance(value, dict) and _natural(value["batches_per_step"]) and value["batches_per_step"] > 0
    ),
    "training.data": lambda value: isinstance(value, dict),
    "training.threads": _natural,
    "training.random_states": lambda value: (
        isinstance(value, list) and all(isinstance(state, dict) for state in value)
    ),
    "training.history": lambda value: isinstance(value, list) and all(_evaluation(entry) for entry in value),
    "training.bad_images": lambda value: (
        isinstance(value, list)
        and all(
            _natural(index) and _natural(times) and isinstance(reason, str) for index, times, reason in value
        )
    ),
    "training.average": lambda value: (
        value is None or all(isinstance(tensor, Tensor) for tensor in value.values())
    ),
    "training.loss_scale": lambda value: value is None or _scale(*value),
    "training.log": lambda value: value is None or _log(value["sums"], value["counts"]),
}
"""What resuming reads, by its place in the file."""


def seed_everything(seed: int) -> None:
    """Start Python's, numpy's and torch's random numbers from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    """Go on from a `random_state`. Raises ValueError, TypeError, LookupError or RuntimeError for others."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    if not 0 <= position <= len(keys):  # numpy would read beyond them
        raise ValueError(f"numpy's random state has {len(keys)} numbers and goes on at {position}")
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
