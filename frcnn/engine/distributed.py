"""The processes of a training or evaluation run: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frcnn.inference.hardware import resolve_device


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Whatever waits for the others says for what, and raises TimeoutError where they do not answer within the
    group's time limit, ConnectionError where one has ended.
    """

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

    def gather(self, value: Any, what: str) -> list[Any]:
        """Every process's value, in every process; `what` it is, for messages."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self.waiting(what):
            distributed.all_gather_object(values, value)
        return values

    def gather_in_first(self, value: Any, what: str) -> list[Any]:
        """Every process's value, in the first process; nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count if self.first else []
        with self.waiting(what):
            distributed.gather_object(value, values if self.first else None)
        return values

    def highest(self, values: Sequence[int], what: str) -> list[int]:
        """The maximum of each value over all processes, in every process; no GPU takes part in it."""
        return self.highest_on_device(torch.tensor(values), what).tolist()

    def highest_on_device(self, values: Tensor, what: str) -> Tensor:
        """The maximum of each value over all processes, written over the values; no host waits for a GPU."""
        if self.count > 1:
            with self.waiting(what):
                distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model; where there are several processes, one whose gradients are the mean of theirs."""
        if self.count == 1:
            return model
        # Buffers are norms' statistics, which training does not use: `share_buffers` before others do.
        # The option had the second name before torch 2.13.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
        if device.type == "cuda":
            options["device_ids"] = [device.index]
        with self.waiting("the same model from the other processes"):
            return DistributedDataParallel(model, **options)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: the norms' statistics are of each one's own images."""
        if self.count > 1:
            with self.waiting("the norms' statistics"):
                for buffer in model.buffers():
                    distributed.broadcast(buffer, 0)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around work that other processes take part in: their absence becomes one plain error."""
        try:
            yield
        except RuntimeError as error:
            # gloo's errors have no type of their own; what comes after a timeout does not even name gloo
            text = str(error)
            of_group = isinstance(error, distributed.DistError) or "gloo" in text or "pair closure" in text
            if self.count == 1 or not of_group:
                raise
            this = f"process {self.rank} of {self.count}"
            if "timed out" in text.lower() or "timeout" in text.lower():
                raise TimeoutError(
                    f"{this} waited in vain for {what}: another process hangs, or needs longer than "
                    "timeout=SECONDS allows"
                ) from None
            raise ConnectionError(
                f"{this} cannot get {what}: another process was killed, or has failed and says why"
            ) from None


def notes_on_restarts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What to say where torchrun will restart processes in a way that can fail.

    They exchange their addresses in the store of torchrun's own rendezvous, which outlives a restart, so the
    new ones may find the addresses of the old ones; gloo then tries to connect to who is gone.
    """
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or environment.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return []
    return [
        "a restart by torchrun may find the addresses of processes that are gone, and fail: set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
    ]


@contextmanager
def started_processes(device: str | None, timeout: float = 600.0) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that torchrun's environment describes, if any; yields this process and its device.

    `device` None takes CUDA where there is one. Under torchrun each process takes the GPU of its local rank.
    `timeout`: seconds after which a process that waits for another one gives up.

    A group that is there already, of Ray Train for example, is joined.

    Raises ValueError where the device is not there, or that group cannot exchange what is on hosts.
    """
    chosen = resolve_device(device)
    if chosen.type == "cuda" and "LOCAL_RANK" in os.environ:
        chosen = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if chosen.index is not None:
        torch.cuda.set_device(chosen)  # its random state is saved, and what is pinned belongs to it
    joined = distributed.is_available() and distributed.is_initialized()
    if joined and "cpu" not in (backends := distributed.get_backend_config()):
        raise ValueError(
            f"the group of processes that is there already exchanges nothing between hosts ({backends}): "
            "make it with the backend 'cpu:gloo,cuda:nccl' (for Ray Train see docs/how-to/many_machines.md)"
        )
    if joined or "RANK" not in os.environ:
        yield Processes.current(), chosen
        return
    expected = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with expected.waiting("the other processes to start"):
        # gloo also where there are GPUs: what hosts tell each other concerns no device
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout)
        )
    group = distributed.GroupMember.WORLD
    assert group is not None
    if chosen.type == "cuda":
        # Where another process hangs, the host too waits for it, soon after its GPU began to. The host's
        # error can be reported; NCCL's only kills the process, so it comes later. There is no public call.
        group._get_backend(chosen)._set_default_timeout(timedelta(seconds=2 * timeout))
    # what these may complain of is that the others are gone, which has been said by then
    try:
        yield Processes.current(), chosen
    except BaseException:
        with contextlib.suppress(RuntimeError):
            group.abort()  # a GPU may still wait for what the others will never send
        raise
    finally:
        del group
        gc.collect()  # without it, one run of ten aborted as Python ended: DDP's models die late, in cycles
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
