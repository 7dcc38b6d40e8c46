"""Which images make up which training step.

An epoch's order is a pure function of (seed, epoch), so a training step's number alone says where the sampler
stands: resuming is starting the sequence at that step, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class SampleKey:
    """One image in one epoch, which seed its augmentation."""

    epoch: int
    index: int


class TrainingBatches(Sampler[list[SampleKey]]):
    """Batches of one process from training step `start` to the end of the last epoch.

    Every epoch is one permutation of the data set, cut into batches. A batch holds only wide or only tall
    images, as that keeps the padding small; the few left over at the end of an epoch are mixed. The next
    `per_step` batches make a step, fewer at the end of an epoch, and are dealt out to the processes, so the
    images of a step are the same whatever the number of processes. A process for which none is left gets
    another's, with weight 0, as all take part in every step.

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
        per_step: int | None = None,
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
        self.per_step = per_step or processes
        self.shares = shares
        self.batches_per_epoch = -(-len(wide) // batch_size)
        self.steps_per_epoch = -(-self.batches_per_epoch // self.per_step)

    def __len__(self) -> int:
        epoch, begun = divmod(self.start, self.steps_per_epoch)
        whole = sum(map(self.batches_of, range(self.steps_per_epoch)))
        return (self.epochs - epoch) * whole - sum(map(self.batches_of, range(begun)))

    def batches_of(self, step: int) -> int:
        """How many batches this process takes in a training step, counted from 0 over all epochs."""
        return len(self._mine(step))

    def weight(self, step: int) -> float:
        """What this process multiplies a step's losses by, so that the processes' mean gradient is the mean
        of the step's batches."""
        return self.processes / self._in_all(step) if self.process < self._in_all(step) else 0.0

    def _in_all(self, step: int) -> int:
        """How many batches a step has, of all processes."""
        return min(self.per_step, self.batches_per_epoch - step % self.steps_per_epoch * self.per_step)

    def _mine(self, step: int) -> range:
        """Which of a step's batches are this process's."""
        count = self._in_all(step)
        return range(self.process % count, count, self.processes)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first_epoch, begun = divmod(self.start, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            batches = self.epoch_batches(epoch)
            for step in range(begun, self.steps_per_epoch):
                for number in self._mine(step):
                    yield [SampleKey(epoch, index) for index in batches[step * self.per_step + number]]
            begun = 0

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch (counted from 0), of all processes."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self._drawn(rng))
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
