"""Inputs on which the emulated kernels are compared with the CPU operators, and run under the sanitizers.

``CASES[op](seed)`` yields the arguments of ``kernels.<op>`` as a dict: ordinary shapes, empty ones, sizes
just around a warp, a block and a tile, degenerate, inverted, huge, infinite and NaN boxes, ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Case = dict[str, object]


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


def grid_anchors(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield {
        "sizes": [int(n) for n in rng.integers(0, 12, 2 * 3)], "strides": [4.0, 8.0, 16.0],
        "scales": [8.0, 11.3], "ratios": [0.5, 1.0, 2.0], "center_offset": 0.5,
    }  # fmt: skip
    yield {"sizes": [25, 7], "strides": [13.0], "scales": [3.0], "ratios": [0.37], "center_offset": 0.0}
    yield {"sizes": [0, 5], "strides": [4.0], "scales": [8.0], "ratios": [1.0], "center_offset": 0.0}


def box_iou(seed: int) -> Iterator[Case]:
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


STDS = (0.1, 0.1, 0.2, 0.2)


def encode_boxes(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n in (0, 1, 255, 300):
        for dtype in (np.float32, np.float64):
            yield {"boxes": wild_boxes(rng, n, dtype), "targets": wild_boxes(rng, n, dtype), "stds": STDS}


def decode_boxes(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n, classes, shape in [(0, 1, None), (3, 0, None), (100, 3, (60, 80)), (257, 1, None)]:
        for dtype in (np.float32, np.float64):
            deltas = (rng.normal(size=(n, 4 * classes)) * 6).astype(dtype)
            yield {"boxes": wild_boxes(rng, n, dtype), "deltas": deltas, "stds": STDS, "max_shape": shape}


def decode_boxes_backward(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in decode_boxes(seed):
        deltas = case["deltas"]
        yield {"grad": rng.normal(size=deltas.shape).astype(deltas.dtype), **case}


def decode_proposals(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    settings = {
        "strides": [4.0, 8.0, 16.0], "scales": [8.0], "ratios": [0.5, 1.0, 2.0], "center_offset": 0.0,
        "stds": (1.0, 1.0, 1.0, 1.0),
    }  # fmt: skip
    for kind in ("float32", "half", "bfloat16"):
        for batch, channels_last in [(1, False), (3, True), (0, False)]:
            sizes = [(13, 17), (7, 9), (0, 4)]
            anchors = [3 * h * w for h, w in sizes]
            yield {
                "deltas": [bits(rng.normal(size=(batch, 12, *s)), kind) for s in sizes],
                "indices": [rng.integers(0, max(n, 1), (batch, 100 if n else 0)) for n in anchors],
                "image_sizes": rng.uniform(30, 60, (batch, 2)).astype(np.float32), **settings,
                "min_size": 3.0, "kind": kind, "channels_last": channels_last,
            }  # fmt: skip


def _rois(rng: np.random.Generator, n: int, batch: int, extent: float, dtype=np.float32) -> np.ndarray:
    """RoIs of every size up to the image and beyond it; some inverted, NaN, infinite or far away."""
    out = boxes(rng, n, extent, dtype)
    out[::4] = wild_boxes(rng, len(out[::4]), dtype)
    size = extent * 2.0 ** rng.uniform(-6, 0.5, (n, 1))
    center = rng.uniform(-0.1, 1.1, (n, 2)) * extent
    out[1::2] = np.concatenate([center - size / 2, center + size / 2], axis=1)[1::2]
    return np.concatenate([rng.integers(0, max(batch, 1), (n, 1)), out], axis=1).astype(dtype)


def _poolings(rng: np.random.Generator) -> Iterator[tuple[Case, int, int, list[int]]]:
    """Settings, batch, channels and map sizes."""
    for output, ratio, aligned in [
        ((7, 7), 0, True),
        ((3, 5), 2, True),
        ((2, 2), 0, False),
        ((1, 33), 0, True),
    ]:
        settings = {
            "output_size": output, "scales": [1 / 4, 1 / 8], "sampling_ratio": ratio, "aligned": aligned,
            "finest_scale": 14.0,
        }  # fmt: skip
        yield settings, 2, int(rng.choice([8, 40, 5])), [17, 23, 9, 12]
    yield {**settings, "output_size": (2, 2), "scales": [1.0]}, 1, 8, [100, 70]  # bins of more than 14 cells
    yield {**settings, "output_size": (2, 2), "scales": [1.0, 0.5]}, 1, 8, [0, 5, 8, 8]  # a map without cells


def roi_align(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for i, (settings, batch, channels, sizes) in enumerate(_poolings(rng)):
        kind = ("float32", "half", "bfloat16", "float64")[(i + seed) % 4]
        maps = [(batch, channels, h, w) for h, w in zip(sizes[::2], sizes[1::2], strict=True)]
        rois = _rois(rng, 14, batch, 100, np.float64 if kind == "float64" else np.float32)
        for count, channels_last in ((14, True), (14, False), (0, True)):
            features = [bits(rng.normal(size=m), kind) for m in maps]
            layout = {"kind": kind, "channels_last": channels_last}
            yield {"features": features, "rois": rois[:count], **settings, **layout}


def roi_align_backward(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for i, (settings, batch, channels, sizes) in enumerate(_poolings(rng)):
        kind = ("float32", "half", "bfloat16", "float64")[(i + seed) % 4]
        output = settings.pop("output_size")
        rois = _rois(rng, 40, batch, 100, np.float64 if kind == "float64" else np.float32)
        for count in (40, 0):
            grad = bits(rng.normal(size=(count, channels, *output)), kind)
            yield {
                "grad": grad,
                "rois": rois[:count],
                "sizes": sizes,
                "batch": batch,
                **settings,
                "kind": kind,
            }
    # More RoIs than a block sorts at once, and more on a tile than it takes at once.
    rois = np.concatenate([np.zeros((1100, 1)), boxes(rng, 1100, 12.0)], axis=1).astype(np.float32)
    grad = rng.normal(size=(1100, 4, 1, 1)).astype(np.float32)
    yield {
        "grad": grad, "rois": rois, "sizes": [10, 9], "batch": 1, "scales": [1.0], "sampling_ratio": 1,
        "aligned": True, "finest_scale": 56.0,
    }  # fmt: skip


def nms_padded(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for segments, n, keep in [(0, 5, 3), (2, 0, 3), (3, 1, 1), (4, 64, 0), (2, 65, 40), (2, 300, 1000)]:
        yield {
            "boxes": wild_boxes(rng, segments * n).reshape(segments, n, 4),
            "scores": scores(rng, segments, n), "iou_threshold": float(rng.choice([0.0, 0.3, 0.5, 1.0])),
            "max_keep": keep,
        }  # fmt: skip


def nms_grouped(seed: int) -> Iterator[Case]:
    """One segment with groups; every score counts, -inf too."""
    rng = np.random.default_rng(seed)
    for n in (1, 70, 700):
        groups = rng.choice([-5, 0, 2**40, 2**40 + 1], n)
        yield {"boxes": wild_boxes(rng, n), "scores": scores(rng, n), "groups": groups, "iou_threshold": 0.4}


def nms_large(seed: int) -> Iterator[Case]:
    """Groups of many sizes, some of several chunks."""
    rng = np.random.default_rng(seed)
    for n, dtype, sizes in [(60, np.float32, 7), (2600, np.float64, 3), (4500, np.float32, 1)]:
        groups = np.where(rng.random(n) < 0.9, 7, rng.integers(0, sizes, n))
        b = boxes(rng, n, 1000.0, dtype)
        b[: n // 10] = wild_boxes(rng, n // 10, dtype)
        yield {"boxes": b, "scores": scores(rng, n, dtype=dtype), "groups": groups, "iou_threshold": 0.3}


def nms_padded_large(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for segments, n, keep, dtype in [(3, 100, 60, np.float32), (2, 2500, 900, np.float64)]:
        b = np.stack([boxes(rng, n, 400.0, dtype) for _ in range(segments)])
        s = scores(rng, segments, n, dtype=dtype)
        yield {"boxes": b, "scores": s, "iou_threshold": 0.2, "max_keep": keep}


MODES = ("log", "linear", "square", "giou", "diou", "ciou", "bounded")


def iou_loss(seed: int) -> Iterator[Case]:
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


def iou_loss_backward(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 1)
    for case in iou_loss(seed):
        n, dtype = len(case["pred"]), case["pred"].dtype
        shape = () if case["reduction"] != "none" else ((n, 4) if case["mode"] == "bounded" else (n,))
        yield {"grad": np.asarray(rng.normal(size=shape), dtype), **case}


def assign_max_iou(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for n, batch, g, regions, shared in [
        (0, 1, 3, 0, True), (5, 2, 0, 0, True), (300, 2, 9, 3, True), (257, 3, 5, 0, False),
        (40, 1, 300, 2, True), (3, 0, 2, 0, True),
    ]:  # fmt: skip
        dtype = np.float64 if rng.random() < 0.3 else np.float32
        # Boxes on a coarse grid, so that IoUs tie.
        grid = np.round(boxes(rng, n * (1 if shared else batch)) / 8) * 8
        grid[::9] = wild_boxes(rng, len(grid[::9]))
        gts = np.round(boxes(rng, batch * g) / 8) * 8
        gts[::5] = wild_boxes(rng, len(gts[::5]))
        ignore = boxes(rng, batch * regions).reshape(batch, regions, 4) if regions else None
        yield {
            "boxes": grid.astype(dtype).reshape((n, 4) if shared else (batch, n, 4)),
            "gts": gts.astype(dtype).reshape(batch, g, 4),
            "gt_counts": np.full(batch, g) if g > 256 else rng.integers(0, g + 1, batch),
            "ignore": None if ignore is None else ignore.astype(dtype),
            "ignore_counts": None if ignore is None else rng.integers(0, regions + 1, batch),
            "pos_iou": 0.5, "neg_iou": float(rng.choice([0.3, 0.5])),
            "min_pos_iou": float(rng.choice([0.0, 0.3])),
            "match_low_quality": bool(rng.integers(4)), "ignore_iof": 0.5,
        }  # fmt: skip


ALL = (
    grid_anchors,
    box_iou,
    encode_boxes,
    decode_boxes,
    decode_boxes_backward,
    decode_proposals,
    roi_align,
    roi_align_backward,
    nms_padded,
    nms_grouped,
    nms_large,
    nms_padded_large,
    iou_loss,
    iou_loss_backward,
    assign_max_iou,
)
CASES = {f.__name__: f for f in ALL}
