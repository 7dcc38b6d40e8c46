"""Where the time of a call goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from benchmarks.measure import synchronize


class StageClock:
    """Splits a detector's call at the boundaries of its modules; what lies between two of them counts too.

    network: a module with `backbone`, `neck`, `rpn_head` (called, then its `propose`) and
    `roi_head.bbox_head`. The device finishes at each boundary, so on CUDA the stages sum to more than a call
    that is not watched.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network
        self.device = device
        self._last = 0.0
        self._seconds: dict[str, float] = {}

    def split(self, call: Callable[[], object]) -> dict[str, float]:
        """Seconds of each stage of one call, from backbone to NMS."""
        network, head = self.network, self.network.roi_head.bbox_head
        self._seconds = {}
        with (
            self._after(network.backbone, "forward", "backbone"),
            self._after(network.neck, "forward", "FPN"),
            self._after(network.rpn_head, "forward", "RPN"),
            self._after(network.rpn_head, "propose", "proposals"),
            self._after(head, "forward", "head", before="RoIAlign"),
        ):
            synchronize(self.device)
            self._last = time.perf_counter()
            call()
            self._mark("NMS")
        return self._seconds

    def _mark(self, stage: str) -> None:
        """Everything since the last mark was this stage."""
        synchronize(self.device)
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def _after(self, owner: nn.Module, method: str, stage: str, before: str | None = None) -> Iterator[None]:
        """Mark `stage` whenever the owner's method returns, and `before` whenever it begins."""
        original = getattr(owner, method)

        def watched(*arguments, **keywords):
            if before is not None:
                self._mark(before)
            result = original(*arguments, **keywords)
            self._mark(stage)
            return result

        setattr(owner, method, watched)
        try:
            yield
        finally:
            delattr(owner, method)
