"""IoU of every pair."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, wild_boxes
from emulated import kind_of


def box_iou_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n, m in [
        (0, 3),
        (3, 0),
        (1, 1),
        (16, 256),
        (17, 257),
        (int(rng.integers(40)), int(rng.integers(300))),
    ]:
        for dtype in (np.float32, np.float64):
            yield {"a": wild_boxes(rng, n, dtype), "b": wild_boxes(rng, m, dtype)}


def box_iou(a, b, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty((len(a), len(b)), a.dtype)
        d.call("frcnn_cuda_box_iou", kind_of(a), d.put(a), d.put(b), len(a), len(b), out)
        return d.get(out)
