"""Steps that a device was given and whose numbers the host has not read yet."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frcnn.engine.log import TrainingLog
from frcnn.engine.step import Numbers


@dataclass(frozen=True, eq=False)
class Step:
    """A step (counted from 0), and what went into it: the file and the id of each image, the size of each in
    the network's input, boxes and labels."""

    iteration: int
    lr: float
    numbers: Numbers
    images: list[tuple[Path, int]]
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]


class UnreadSteps:
    """Their numbers go to the log in the order of the steps, as they arrive.

    broken: the first step that broke training (see `Learner`), once its numbers were read; those of
    later ones are not.
    """

    def __init__(self, log: TrainingLog, device: torch.device):
        self.log, self.device = log, device
        self.steps: deque[Step] = deque()
        self.broken: Step | None = None

    def add(self, step: Step) -> None:
        self.steps.append(step)

    def read(self, wait: bool = False) -> None:
        """Read what is there, or wait, once, and read all."""
        if wait and self.steps:
            self.steps[-1].numbers.read()
        while self.steps and self.broken is None and (wait or self.steps[0].numbers.values.is_there()):
            step = self.steps.popleft()
            values, broken = step.numbers.read()
            if broken:
                self.broken = step
            else:  # a step that float16 has skipped has numbers of which there is no mean
                finite = {name: value for name, value in values.items() if math.isfinite(value)}
                self.log.step(step.iteration, step.lr, finite, self.device)
