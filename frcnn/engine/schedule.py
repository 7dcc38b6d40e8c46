"""The learning rate of every training step, in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

from frcnn.config import ScheduleConfig


def learning_rate(iteration: int, steps_per_epoch: int, global_batch: int, schedule: ScheduleConfig) -> float:
    """Learning rate of a training step, counted from 0.

    The recipe's rate, scaled linearly to the images per step over all processes (Goyal et al. 2017), times
    `decay` for every decay epoch that has passed, or half a cosine (Loshchilov and Hutter 2017); the first
    steps rise linearly from `warmup_factor` of it.
    """
    rate = schedule.lr * global_batch / schedule.lr_batch
    if schedule.decay_shape == "cosine":
        rate *= (1 + math.cos(math.pi * iteration / (schedule.epochs * steps_per_epoch))) / 2
    else:
        epoch = iteration // steps_per_epoch
        rate *= schedule.decay ** sum(epoch >= decay_epoch for decay_epoch in schedule.decay_epochs)
    if iteration < schedule.warmup_iterations:
        progress = iteration / schedule.warmup_iterations
        rate *= schedule.warmup_factor + (1 - schedule.warmup_factor) * progress
    return rate


def with_epochs(schedule: ScheduleConfig, epochs: int) -> ScheduleConfig:
    """The same schedule over another number of epochs: the decay epochs move in proportion."""
    if epochs < 1:
        raise ValueError(f"training needs at least one epoch, got {epochs}")
    decay_epochs = tuple(max(1, round(epoch * epochs / schedule.epochs)) for epoch in schedule.decay_epochs)
    return replace(schedule, epochs=epochs, decay_epochs=decay_epochs)
