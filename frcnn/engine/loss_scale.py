"""The factor that keeps float16's small gradients above zero."""

from __future__ import annotations

import torch
from torch import Tensor

START, STEPS_TO_DOUBLE = 65536.0, 2000


class LossScale:
    """By the rule of torch.amp.GradScaler, and, like it, without the host's help: halved after a step whose
    numbers were not finite, doubled after STEPS_TO_DOUBLE steps in a row that had none of these.

    value: float32 [], what the loss is multiplied by; steps: int64 [], the length of the row so far. Both are
    written in place, in the order of the device's work, so that an update can be captured as a graph.
    """

    def __init__(self, device: torch.device):
        self.value = torch.full((), START, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, overflowed: Tensor) -> None:
        """After a step. overflowed: bool []."""
        row = torch.where(overflowed, 0, self.steps + 1)
        doubles = row == STEPS_TO_DOUBLE
        factor = torch.where(overflowed, 0.5, torch.where(doubles, 2.0, 1.0))
        self.value.mul_(factor)
        self.steps.copy_(row.masked_fill(doubles, 0))

    def state(self) -> list[float]:
        """As plain numbers; waits for the device."""
        return [self.value.item(), self.steps.item()]

    def restore(self, state: list[float]) -> None:
        value, steps = state
        self.value.fill_(value)
        self.steps.fill_(steps)
