"""Which images make up which training step.

An epoch's order is a pure function of (seed, epoch, process), so a training step's number alone says where
the sampler stands: resuming is starting the sequence at that step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class SampleKey:
    """One image in one epoch; the epoch seeds its augmentation."""

    epoch: int
    index: int


class TrainingBatches(Sampler[list[SampleKey]]):
    """Batches of one process from training step `start` to the end of the last epoch.

    Every epoch is one permutation of the data set dealt out to the processes. A batch holds only wide or only
    tall images, as that keeps the padding small; the few left over at the end of an epoch are mixed. Every
    process gets the same number of batches: where the data set does not divide evenly, the first images of
    the permutation are seen twice. `accumulate` batches make a step, fewer at the end of an epoch.

    wide: bool [I], whether the image is wider than high. shares: how often an image is drawn, against the
    others, [I]; None stands for all alike, once in an epoch.
    """

    def __init__(
        self,
        wide: np.ndarray,
        batch_size: int,
        epochs: int,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        start: int = 0,
        accumulate: int = 1,
        shares: np.ndarray | None = None,
    ):
        if len(wide) == 0 or batch_size < 1:
            raise ValueError(f"cannot make batches of {batch_size} from {len(wide)} images")
        self.wide = wide
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.process = process
        self.processes = processes
        self.start = start
        self.accumulate = accumulate
        self.shares = shares
        self.per_process = -(-len(wide) // processes)
        self.batches_per_epoch = -(-self.per_process // batch_size)
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulate)

    def __len__(self) -> int:
        epoch, step = divmod(self.start, self.steps_per_epoch)
        return (self.epochs - epoch) * self.batches_per_epoch - step * self.accumulate

    def batches_of(self, step: int) -> int:
        """How many batches a training step takes, counted from 0 over all epochs."""
        before = step % self.steps_per_epoch * self.accumulate
        return min(self.accumulate, self.batches_per_epoch - before)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first_epoch, position = divmod(self.start, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch in self.epoch_batches(epoch)[position * self.accumulate :]:
                yield [SampleKey(epoch, index) for index in batch]
            position = 0

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """This process's batches of one epoch (counted from 0)."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self._drawn(rng))
        order = np.resize(order, self.per_process * self.processes)[self.process :: self.processes]
        batches: list[list[int]] = []
        groups: dict[bool, list[int]] = {True: [], False: []}
        for index in order.tolist():
            group = groups[bool(self.wide[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = groups[True] + groups[False]
        return batches + [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch, [I]; by shares each is there its expected number of times, rounded up or
        down at random (systematic sampling)."""
        count = len(self.wide)
        if self.shares is None:
            return np.arange(count)
        through = np.cumsum(self.shares) / np.sum(self.shares)
        found = np.searchsorted(through, (np.arange(count) + rng.random()) / count, side="right")
        return np.minimum(found, count - 1)


def repeat_factors(labels: np.ndarray, box_offsets: np.ndarray, threshold: float) -> np.ndarray:
    """How often to draw each image against others so that rare classes are seen more often, float64 [I].

    By Gupta et al. 2019 (doi:10.1109/CVPR.2019.00550): for a class that the share f of all images has, the
    square root of threshold / f, at least 1; for an image the largest of its classes', 1 without any.

    labels: int64 [N], image after image, -1 where a box is not counted; box_offsets: int64 [I + 1].
    """
    images = np.repeat(np.arange(len(box_offsets) - 1), np.diff(box_offsets))
    pairs = np.unique(np.stack([images, labels])[:, labels >= 0], axis=1)
    share = np.bincount(pairs[1], minlength=1) / max(len(box_offsets) - 1, 1)
    factors = np.ones(len(box_offsets) - 1)
    np.maximum.at(factors, pairs[0], np.sqrt(threshold / share[pairs[1]]))
    return factors
