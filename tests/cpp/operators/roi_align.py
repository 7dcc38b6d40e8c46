"""RoIAlign and its gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import emulated
import numpy as np
from arrays import Case, bits, boxes, wild_boxes
from emulated import Double, Int, Pointer, doubles, ints, kind_of, size_of


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


def roi_align_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for i, (settings, batch, channels, sizes) in enumerate(_poolings(rng)):
        kind = ("float32", "half", "bfloat16", "float64")[(i + seed) % 4]
        maps = [(batch, channels, h, w) for h, w in zip(sizes[::2], sizes[1::2], strict=True)]
        rois = _rois(rng, 14, batch, 100, np.float64 if kind == "float64" else np.float32)
        for count, channels_last in ((14, True), (14, False), (0, True)):
            features = [bits(rng.normal(size=m), kind) for m in maps]
            layout = {"kind": kind, "channels_last": channels_last}
            yield {"features": features, "rois": rois[:count], **settings, **layout}


def roi_align_backward_cases(seed: int) -> Iterator[Case]:
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


class RoiAlign(ctypes.Structure):
    _fields_ = (
        ("sizes", Pointer), ("scales", Pointer), ("levels", Int), ("batch", Int), ("channels", Int),
        ("rois", Int), ("pooled_height", Int), ("pooled_width", Int), ("sampling_ratio", Int),
        ("aligned", ctypes.c_bool), ("channels_last", ctypes.c_bool), ("finest_scale", Double),
    )  # fmt: skip

    def __init__(self, sizes, scales, *rest):
        self.arrays = [ints(sizes), doubles(scales)]
        super().__init__(*(ctypes.addressof(a) for a in self.arrays), len(scales), *rest)


def roi_align(
    features, rois, output_size, scales, sampling_ratio, aligned, finest_scale,
    kind=None, channels_last=False, seed=0,
) -> np.ndarray:  # fmt: skip
    """features: L of [B, C, H, W] -> [K, C, h, w]; channels_last says how they lie on the device."""
    batch, channels = features[0].shape[:2]
    sizes = [n for f in features for n in f.shape[2:]]
    h, w = output_size
    with emulated.device(seed) as d:
        maps = [d.put(f.transpose(0, 2, 3, 1) if channels_last else f).address for f in features]
        shape = (len(rois), h, w, channels) if channels_last else (len(rois), channels, h, w)
        out = d.empty(shape, features[0].dtype)
        pooling = RoiAlign(
            sizes,
            scales,
            batch,
            channels,
            len(rois),
            h,
            w,
            sampling_ratio,
            aligned,
            channels_last,
            finest_scale,
        )
        kind = kind_of(features[0], kind)
        pointers = (Pointer * len(maps))(*maps)
        d.call("frcnn_cuda_roi_align", kind, ctypes.byref(pooling), pointers, d.put(rois), out)
        result = d.get(out)
        return result.transpose(0, 3, 1, 2) if channels_last else result


def roi_align_backward(
    grad, rois, sizes, batch, scales, sampling_ratio, aligned, finest_scale, kind=None, seed=0
) -> list[np.ndarray]:
    channels, (h, w) = grad.shape[1], grad.shape[2:]
    with emulated.device(seed) as d:
        shapes = zip(sizes[::2], sizes[1::2], strict=True)
        outs = [d.empty((batch, *shape, channels), grad.dtype) for shape in shapes]
        pooling = RoiAlign(
            sizes, scales, batch, channels, len(rois), h, w, sampling_ratio, aligned, True, finest_scale
        )
        kind = kind_of(grad, kind)
        size = size_of(d, "frcnn_cuda_roi_align_backward_workspace", Int(kind), ctypes.byref(pooling))
        pointers = (Pointer * len(outs))(*(o.address for o in outs))
        arrays = d.put(grad.transpose(0, 2, 3, 1)), d.put(rois), d.empty(size, np.uint8)
        d.call("frcnn_cuda_roi_align_backward", kind, ctypes.byref(pooling), *arrays, pointers)
        return [d.get(o).transpose(0, 3, 1, 2) for o in outs]
