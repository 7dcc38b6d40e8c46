"""The processes of a training or evaluation run: one, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @staticmethod
    def current() -> Processes:
        if distributed.is_available() and distributed.is_initialized():
            return Processes(distributed.get_rank(), distributed.get_world_size())
        return Processes()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def highest(self, value: int, device: torch.device) -> int:
        """The largest of every process's value, in every process."""
        if self.count == 1:
            return value
        values = torch.tensor([value], device=device)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return int(values.item())


@contextmanager
def started_processes(device: str | None) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that torchrun's environment describes, if any; yields this process and its device.

    `device` None takes CUDA where there is one. Under torchrun each process takes the GPU of its local rank.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and "LOCAL_RANK" in os.environ:
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    if "RANK" not in os.environ or distributed.is_initialized():
        yield Processes.current(), chosen
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes.current(), chosen
    finally:
        distributed.destroy_process_group()
