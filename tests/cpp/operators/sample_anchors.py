"""A random subset of each image's anchors."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case
from emulated import Int, size_of


def sample_anchors_cases(seed: int) -> Iterator[Case]:
    """None, all and some of them; sizes around a chunk, and more chunks than threads look at one by one."""
    rng = np.random.default_rng(seed)
    for batch, n, samples, most_positive, kinds in [
        (2, 700, 64, 16, (-1, 0, 0, 0, 1)), (1, 256, 256, 128, (0, 1)), (3, 257, 40, 40, (-1, 1, 2)),
        (1, 70_000, 24, 12, (0, 0, 0, -1)), (2, 30, 100, 3, (-1, 0, 5)), (1, 9, 4, 0, (0, 1)),
        (0, 5, 3, 1, (0,)), (2, 0, 3, 1, (0,)), (2, 40, 0, 0, (0, 1)), (1, 50, 8, 4, (-1,)),
    ]:  # fmt: skip
        yield {
            "gt_index": rng.choice(kinds, (batch, n)).astype(np.int64),
            "seed": np.array(rng.integers(-(2**63), 2**63 - 1)), "samples": samples,
            "most_positive": most_positive,
        }  # fmt: skip


def sample_anchors(gt_index, seed, samples, most_positive, order=0) -> tuple[np.ndarray, np.ndarray]:
    """`seed` is the operator's own; `order` that of the threads."""
    batch, n = gt_index.shape
    slots = min(samples, n)
    with emulated.device(order) as d:
        memory = d.empty(size_of(d, "frcnn_cuda_sample_anchors_workspace", Int(batch), Int(n)), np.uint8)
        index, counts = d.empty((batch, slots), np.int64), d.empty((batch, 2), np.int64)
        sizes = batch, n, slots, most_positive
        d.call("frcnn_cuda_sample_anchors", d.put(gt_index), d.put(seed), *sizes, memory, index, counts)
        return d.get(index), d.get(counts)
