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
    the permutation are seen twice.

    wide: bool [I], whether the image is wider than high.
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
        self.per_process = -(-len(wide) // processes)
        self.steps_per_epoch = -(-self.per_process // batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first_epoch, position = divmod(self.start, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch in self.epoch_batches(epoch)[position:]:
                yield [SampleKey(epoch, index) for index in batch]
            position = 0

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """This process's batches of one epoch (counted from 0)."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.wide))
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
