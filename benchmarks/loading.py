"""Processor time of reading a checkpoint: ours against torch.load.

    python benchmarks/loading.py [--copy] [--budget 3]

The readers take turns, in one process with one thread, on files that lie in the system's cache. torch.load
reads a file's optimizer state too; ours reads the weights alone, and compares them with their checksums.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

import frcnn
from benchmarks.measure import interleave
from frcnn.checkpoint.load import read_checkpoint


class HistoryBuffer:
    """What MMEngine's checkpoints hold for each value of the log; weights_only refuses it."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.random.rand(7330), np.ones(7330, np.int64)


def files() -> dict[str, tuple[dict[str, Any], dict[str, bool]]]:
    """(content, how torch.save writes it) by what is special about the file."""
    weights = OrderedDict(frcnn.build("faster_rcnn_r50_fpn_1x_coco").state_dict())
    momentum = {
        key: {"momentum_buffer": torch.rand_like(v.float())} for key, v in enumerate(weights.values())
    }
    whole = {"meta": {"CLASSES": ("a", "b")}, "state_dict": weights, "optimizer": {"state": momentum}}
    history = {name: HistoryBuffer() for name in ("train/loss", "train/lr", "train/time")}
    storage = torch.rand(1_000_000)
    many = torch.rand(1000, 1000)
    return {
        "R-50-FPN": ({"state_dict": weights}, {}),
        "R-50-FPN, no CRC": ({"state_dict": weights}, {"crc32": False}),
        "R-50-FPN, older format": ({"state_dict": weights}, {"zipped": False}),
        "R-50-FPN, momentum": (whole, {}),
        "R-50-FPN, MMEngine": (whole | {"message_hub": {"log_scalars": history}}, {}),
        "1000 views": ({str(i): storage[i * 999 :].view(-1)[:999] for i in range(1000)}, {}),
        "1000 tensors": ({str(i): many[i].clone() for i in range(1000)}, {}),
        "1000 expanded": ({str(i): storage[i : i + 1].expand(1000, 4) for i in range(1000)}, {}),
    }


def readers() -> dict[str, Callable[[Path], Any]]:
    return {
        "ours": lambda path: read_checkpoint(path).tensors,
        "weights_only": partial(torch.load, weights_only=True),
        "weights_only, mmap": partial(torch.load, weights_only=True, mmap=True),
        "any object": partial(torch.load, weights_only=False),
    }


def processor_seconds(read: Callable[[Path], Any], path: Path, copies: dict[str, Tensor]) -> float:
    """Of one reading, and of copying the weights where ``copies`` has memory for them."""
    started = time.process_time()
    content = read(path)
    weights = content.get("state_dict", content)
    for name, copy in copies.items():
        copy.copy_(weights[name])
    return time.process_time() - started


def main(copy: bool = False, budget: float = 3) -> None:
    """Print medians in milliseconds of processor time, and how ours compares with weights_only.

    Args:
        copy: Count a copy of the weights too, as filling a model makes one; a mapped file is read only then.
        budget: Seconds for each file.
    """
    torch.set_num_threads(1)
    names = list(readers())
    print(f"{'ms':24}" + "".join(f"{name:>20}" for name in names) + f"{'ours / weights_only':>22}")
    for title, (content, options) in files().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file.pth"
            torch.serialization.set_crc32_options(options.get("crc32", True))
            torch.save(content, path, _use_new_zipfile_serialization=options.get("zipped", True))
            torch.serialization.set_crc32_options(True)
            weights = content.get("state_dict", content)
            copies = {name: value.clone() for name, value in weights.items()} if copy else {}
            subjects = {}
            for name, read in readers().items():
                try:
                    read(path)
                except Exception:  # weights_only refuses MMEngine's objects, mmap the older format
                    continue
                subjects[name] = partial(processor_seconds, read, path, copies)
            found = {
                name: statistics.median(seconds) * 1e3
                for name, seconds in interleave(subjects, budget).items()
            }
        cells = "".join(f"{found[name]:20.1f}" if name in found else f"{'refused':>20}" for name in names)
        other = found.get("weights_only", found["any object"])
        print(f"{title:24}{cells}{found['ours'] / other:22.2f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
