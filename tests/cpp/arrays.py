"""Arrays for cases: ordinary, degenerate, inverted, huge, infinite and NaN boxes, scores with ties."""

from __future__ import annotations

import numpy as np

Case = dict[str, object]
STDS = (0.1, 0.1, 0.2, 0.2)


def boxes(rng: np.random.Generator, n: int, extent: float = 100.0, dtype=np.float32) -> np.ndarray:
    """Proper boxes that overlap often."""
    corner = rng.uniform(-0.1, 0.8, (n, 2)) * extent
    size = rng.uniform(0.02, 0.4, (n, 2)) * extent
    return np.concatenate([corner, corner + size], axis=1).astype(dtype)


def wild_boxes(rng: np.random.Generator, n: int, dtype=np.float32) -> np.ndarray:
    """Boxes of which half are degenerate, inverted, repeated, huge, infinite or NaN."""
    out = boxes(rng, n, dtype=dtype)
    for i in range(0, n, 2):
        kind = rng.integers(8)
        if kind == 0:
            out[i, 2:] = out[i, :2]
        elif kind == 1:
            out[i] = out[i, [2, 3, 0, 1]]
        elif kind == 2:
            out[i] = out[rng.integers(n)]
        elif kind == 3:
            out[i] *= 1e19
        elif kind == 4:
            out[i, rng.integers(4)] = np.inf
        elif kind == 5:
            out[i, rng.integers(4)] = np.nan
        elif kind == 6:
            out[i] = np.round(out[i] / 10) * 10
    return out


def scores(rng: np.random.Generator, *shape: int, dtype=np.float32) -> np.ndarray:
    """Scores with many ties, both zeros, NaN and infinities."""
    out = np.round(rng.normal(size=shape), 1).astype(dtype)
    special = rng.random(shape)
    out[special < 0.05] = np.nan
    out[(special > 0.05) & (special < 0.1)] = -0.0
    out[(special > 0.1) & (special < 0.15)] = -np.inf
    out[(special > 0.15) & (special < 0.17)] = np.inf
    return out


def bits(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 as the bits of half or bfloat16 (truncated to it), for kernels that take them."""
    if kind == "half":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(kind)
