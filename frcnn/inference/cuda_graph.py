"""A function of fixed shapes as CUDA graphs: one launch per call instead of hundreds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Captured(NamedTuple):
    """What a capture returns: the outputs, at addresses that every replay writes to, and the replay."""

    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class CudaCapture:
    """Records `function(*inputs)` as a CUDA graph that reads these inputs anew at each replay.

    Graphs of one CudaCapture share a memory pool: a replay overwrites what an earlier replay of another graph
    left there, so its outputs must be copied first. The function is run a few times before it is captured, on
    a stream of its own, because libraries choose algorithms and allocate workspaces on first use.
    """

    def __init__(self) -> None:
        # one for each device: a library keeps its workspace for every stream that it has seen
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @cached_property
    def _pool(self) -> Any:  # torch keeps its type to itself
        return torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Captured:
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # the choice is made once per shape, in the warm-up
        try:
            device = inputs[0].device
            with torch.cuda.device(device):
                if device not in self._streams:
                    self._streams[device] = torch.cuda.Stream()
                return self._capture(function, inputs, self._streams[device])
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def _capture(self, function: Function, inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Captured:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may prepare their images meanwhile, which must not break the capture
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return Captured(outputs, graph.replay)


class GraphCache:
    """Calls `function` by replaying a graph of it, captured once per combination of input shapes.

    Threads may share it: they take turns, since a graph has one set of inputs and outputs.

    function: tensors -> tuple of tensors, without host synchronization or data-dependent shapes.
    capture: how to record a call.
    """

    capacity = 8
    """Graphs kept; beyond it, the least recently used is dropped for a new one."""

    def __init__(
        self, function: Function, capture: Callable[[Function, Sequence[Tensor]], Captured] | None = None
    ):
        self.function = function
        self._capture = capture or CudaCapture()
        self._entries: OrderedDict[tuple, tuple[tuple[Tensor, ...], Captured]] = OrderedDict()
        self._lock = threading.Lock()
        self._last: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in inputs)
        with self._lock:
            # the turn before may have been given to another stream and still be running there
            if self._last is not None:
                torch.cuda.current_stream(inputs[0].device).wait_event(self._last)
            outputs = self._call(key, inputs)
            if inputs[0].device.type == "cuda":
                self._last = torch.cuda.current_stream(inputs[0].device).record_event()
        return outputs

    def _call(self, key: tuple, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        entry = self._entries.get(key)
        if entry is None:
            own = tuple(tensor.clone() for tensor in inputs)
            entry = self._entries[key] = own, self._capture(self.function, own)
            if len(self._entries) > self.capacity:
                # after the capture: the last graph would take the pool along
                self._entries.popitem(last=False)
        own, (outputs, replay) = entry
        for kept, tensor in zip(own, inputs, strict=True):
            kept.copy_(tensor, non_blocking=True)
        self._entries.move_to_end(key)
        replay()
        return tuple(output.clone() for output in outputs)
