"""What training tells a program as it goes: derive from `Callback` and pass it to `frcnn.train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frcnn.engine.run_folder import TrainResult


class Callback:
    """Every method may be left as it is. The first process calls them, from the thread that trains.

    A run that goes on by `resume` tells anew what came after its last checkpoint. An exception ends training,
    as any error does: what the last checkpoint holds is kept.
    """

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """After a step, counted from 1 over all epochs: its losses, acc, grad_norm and lr. On a GPU that may
        be some steps later, when the numbers have arrived."""

    def epoch(self, epoch: int, means: dict[str, float]) -> None:
        """After an epoch, counted from 1: the means since the last line of the log, which it repeats."""

    def evaluation(self, epoch: int, metrics: dict[str, float]) -> None:
        """After an evaluation: bbox_mAP and so on, 0 to 1, -1 where there is nothing to measure."""

    def end(self, result: TrainResult) -> None:
        """After the last epoch; not after an error or an interruption."""
