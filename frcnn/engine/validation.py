"""The evaluations of a training run on its validation set."""

from __future__ import annotations

import math
from collections.abc import Callable

from frcnn.config import ScheduleConfig
from frcnn.data import CocoDataset
from frcnn.detector import FasterRCNN
from frcnn.engine.evaluate import Evaluation, evaluate, match_classes
from frcnn.engine.validation_loss import ValidationLosses


class Validation:
    """Evaluates `model`, the one that trains or the average of its weights, on `dataset`.

    history: the epoch and the metrics of every evaluation, in order; each adds its own.
    Raises DatasetError where the classes are others, or there is no image to compute the losses on.
    """

    def __init__(
        self,
        model: FasterRCNN,
        dataset: CocoDataset,
        losses: bool,
        schedule: ScheduleConfig,
        history: list[dict[str, float]],
    ):
        self.model, self.dataset, self.losses = model, dataset, losses
        self.batch_size, self.patience = schedule.images_per_process, schedule.patience
        self.history = history
        category_ids = match_classes(model, dataset)
        if losses:
            ValidationLosses(model, dataset, category_ids)

    def evaluate(self, epoch: int, stop: Callable[[], bool]) -> tuple[Evaluation, dict[str, float], bool]:
        """Also what goes into the history and the log, and whether it is the best so far. Raises
        KeyboardInterrupt where `stop` says so."""
        result = evaluate(self.model, self.dataset, batch_size=self.batch_size, losses=self.losses, stop=stop)
        metrics = result.metrics | {f"val_{name}": value for name, value in result.losses.items()}
        previous = max((entry["bbox_mAP"] for entry in self.history), default=-math.inf)
        self.history.append({"epoch": epoch, **metrics})
        return result, metrics, metrics["bbox_mAP"] > previous

    def has(self, epoch: int) -> bool:
        return any(entry["epoch"] == epoch for entry in self.history)

    def is_over(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        scores = [entry["bbox_mAP"] for entry in self.history]
        return 0 < self.patience <= len(scores) - 1 - scores.index(max(scores)) if scores else False
