"""IoU losses and their gradient."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import numpy as np
from arrays import STDS, Case, boxes, wild_boxes
from emulated import Double, Int, doubles, kind_of, size_of

MODES = ("log", "linear", "square", "giou", "diou", "ciou", "bounded")


def iou_loss_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for i, mode in enumerate(MODES):
        for reduction in ("none", "sum", "mean"):
            n = int(rng.choice([0, 1, 33, 256, 300]))
            dtype = (np.float32, np.float64)[(i + seed) % 2]
            decoded = bool(rng.integers(2))
            tame = reduction != "none"  # a NaN would hide everything else in a sum
            make = boxes if tame else wild_boxes
            target = make(rng, n, dtype=dtype)
            yield {
                "pred": rng.normal(size=(n, 4)).astype(dtype) if decoded else make(rng, n, dtype=dtype),
                "target": target,
                "weight": rng.random(n).astype(dtype) if rng.integers(2) else None,
                "boxes": make(rng, n, dtype=dtype) if decoded else None,
                "stds": STDS, "mode": mode, "eps": 1e-3 if mode == "bounded" else 1e-6, "beta": 0.2,
                "reduction": reduction,
            }  # fmt: skip
    n = 5000  # several blocks
    common = {"weight": None, "boxes": None, "stds": STDS, "eps": 1e-6, "beta": 0.2, "reduction": "mean"}
    yield {"pred": boxes(rng, n), "target": boxes(rng, n), "mode": "giou", **common}


def iou_loss_backward_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in iou_loss_cases(seed):
        n, dtype = len(case["pred"]), case["pred"].dtype
        shape = () if case["reduction"] != "none" else ((n, 4) if case["mode"] == "bounded" else (n,))
        yield {"grad": np.asarray(rng.normal(size=shape), dtype), **case}


REDUCTIONS = ("none", "sum", "mean")


def iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction, seed=0) -> np.ndarray:
    n = len(pred)
    shape = () if reduction != "none" else ((n, 4) if mode == "bounded" else (n,))
    with emulated.device(seed) as d:
        out = d.empty(shape, pred.dtype)
        inputs = [None if x is None else d.put(x) for x in (pred, target, weight, boxes)]
        workspace = d.empty(size_of(d, "frcnn_cuda_iou_loss_workspace", Int(n)), np.uint8)
        settings = (
            doubles(stds),
            n,
            MODES.index(mode),
            Double(eps),
            Double(beta),
            REDUCTIONS.index(reduction),
        )
        d.call("frcnn_cuda_iou_loss", kind_of(pred), *inputs, *settings, workspace, out)
        return d.get(out)


def iou_loss_backward(
    grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction, seed=0
) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(pred.shape, pred.dtype)
        inputs = [None if x is None else d.put(x) for x in (grad, pred, target, weight, boxes)]
        settings = doubles(stds), len(pred), MODES.index(mode), Double(eps), Double(beta)
        d.call(
            "frcnn_cuda_iou_loss_backward",
            kind_of(pred),
            *inputs,
            *settings,
            REDUCTIONS.index(reduction),
            out,
        )
        return d.get(out)
