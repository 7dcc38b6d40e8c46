"""What fuzz.py calls the operators with: a generator of valid arguments for each, and ways to spoil them."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

import frcnn_ops

sys.path.append(str(Path(__file__).resolve().parents[1] / "cpp"))
from cases import CASES
from tensors import arguments

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
COUNTS = (0, 1, 2, 3, 17, 70)
NUMBERS = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e7, 1e-30, 0.0, -0.0)
HOSTILE_INTS = (0, -1, 7, 2**31, 2**32, 2**32 + 1, 2**62, -(2**62), 2**63 - 1, -(2**63))
HOSTILE_FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300, 2.0)
MODES = ("log", "linear", "square", "giou", "diou", "ciou", "bounded")


# ---- valid arguments -------------------------------------------------------------------------------------


def odd_numbers(r: random.Random, t: Tensor, columns=slice(None)) -> Tensor:
    """Sometimes a few entries that are not finite, or huge."""
    if t.numel() and r.random() < 0.25:
        for _ in range(r.randint(1, 3)):
            row = t.view(-1, t.shape[-1])[r.randrange(t.numel() // t.shape[-1])][columns]
            row[r.randrange(len(row))] = r.choice(NUMBERS)
    return t


def laid_out(r: random.Random, t: Tensor) -> Tensor:
    """The same values in another layout."""
    kind = r.randrange(6)
    if kind == 0:
        return torch.stack([t, t], dim=-1)[..., 1]
    if kind == 1 and t.dim() > 1:
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == 2 and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if kind == 3:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)  # off its alignment
    if kind == 4 and t.dim() and t.shape[0]:
        return torch.cat([t, t])[: 2 * len(t) : 1][: len(t)]
    return t


def boxes(r: random.Random, *shape: int, dtype=torch.float32) -> Tensor:
    corner, size = torch.rand(*shape, 2) * 30, torch.rand(*shape, 2) * 20
    if r.random() < 0.3:  # ties
        corner, size = corner.round(), size.round()
    if r.random() < 0.1:  # inverted
        size = -size
    return laid_out(r, odd_numbers(r, torch.cat([corner, corner + size], dim=-1).to(dtype)))


def numbers(r: random.Random, *shape: int, dtype=torch.float32, scale=1.0) -> Tensor:
    return laid_out(r, odd_numbers(r, torch.randn(*shape).mul(scale).to(dtype)))


def scores(r: random.Random, *shape: int, dtype=torch.float32) -> Tensor:
    t = torch.rand(*shape).to(dtype)
    if r.random() < 0.5:  # ties
        t = (t * 4).round() / 4
    return laid_out(r, odd_numbers(r, t))


def maps(r: random.Random, levels: int) -> list[int]:
    return [r.choice((0, 1, 2, 5, 9)) for _ in range(2 * levels)]


def anchors(r: random.Random, levels: int) -> tuple[list[float], list[float], list[float], float]:
    strides = [r.choice((4.0, 8.0, 3.7)) for _ in range(levels)]
    return (
        strides,
        [8.0, 1.3][: r.randint(1, 2)],
        [0.5, 1.0, 2.0][: r.randint(1, 3)],
        r.choice((0.0, 0.5, 1.0)),
    )


def stds(r: random.Random) -> list[float]:
    return r.choice(([1.0] * 4, [0.1, 0.1, 0.2, 0.2]))


def rois(r: random.Random, count: int, batch: int, dtype: torch.dtype) -> Tensor:
    image = torch.randint(0, batch, (count, 1))
    box = torch.rand(count, 4) * 60 - 10
    if r.random() < 0.3:
        box = box.round()
    if r.random() < 0.8:  # proper ones
        box = torch.cat([torch.minimum(box[:, :2], box[:, 2:]), torch.maximum(box[:, :2], box[:, 2:])], dim=1)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return laid_out(r, odd_numbers(r, torch.cat([image, box], dim=1).to(dtype), slice(1, None)))


def grid_anchors(r):
    levels = r.randint(1, 3)
    images = r.choice((None, torch.rand(r.choice((0, 1, 2)), 2) * 40))
    return [maps(r, levels), *anchors(r, levels), torch.device("cpu"), images]


def encode_boxes(r):
    dtype, count = r.choice(FLOATS), r.choice(COUNTS)
    return [boxes(r, count, dtype=dtype), boxes(r, count, dtype=dtype), stds(r)]


def decode_boxes(r):
    dtype, count = r.choice(FLOATS), r.choice(COUNTS)
    deltas = numbers(r, count, 4 * r.choice((0, 1, 3)), dtype=dtype, scale=r.choice((0.0, 1.0, 9.0)))
    return [boxes(r, count, dtype=dtype), deltas, stds(r), r.choice((None, [20, 30], [0, 0]))]


def decode_boxes_backward(r):
    _, deltas, *_ = arguments = decode_boxes(r)
    return [numbers(r, *deltas.shape, dtype=deltas.dtype), *arguments]


def pooling(r, levels):
    scales = [r.choice((0.25, 0.5, 1.0, 1 / 3)) for _ in range(levels)]
    return scales, r.choice((0, 0, 1, 2, 3)), r.random() < 0.5, r.choice((1.0, 8.0, 56.0))


def roi_align(r):
    levels, batch, channels, dtype = (
        r.randint(1, 3),
        r.choice((0, 1, 2)),
        r.choice((0, 1, 3, 17, 130)),
        r.choice((*FLOATS, *HALVES)),
    )
    sizes = maps(r, levels)
    features = [
        numbers(r, batch, channels, *size, dtype=dtype) for size in zip(sizes[::2], sizes[1::2], strict=True)
    ]
    scales, *rest = pooling(r, levels)
    own = rois(r, r.choice((0, 1, 4)) if batch else 0, max(batch, 1), dtype)
    return [features, own, [r.randint(1, 4), r.randint(1, 4)], scales, *rest]


def roi_align_backward(r):
    levels, batch, dtype = r.randint(1, 3), r.choice((0, 1, 2)), r.choice((*FLOATS, *HALVES))
    count = r.choice((0, 1, 4)) if batch else 0
    grad = numbers(r, count, r.choice((0, 1, 3, 17)), r.randint(1, 4), r.randint(1, 4), dtype=dtype)
    return [grad, rois(r, count, max(batch, 1), dtype), maps(r, levels), batch, *pooling(r, levels)]


def nms(r):
    dtype, count = r.choice(FLOATS), r.choice(COUNTS)
    groups = None
    if r.random() < 0.5:
        groups = laid_out(r, torch.tensor([-(2**62), 0, 1, 2**62])[torch.randint(0, 4, (count,))])
    return [
        boxes(r, count, dtype=dtype),
        scores(r, count, dtype=dtype),
        groups,
        r.choice((0.0, 0.3, 0.5, 1.0)),
    ]


def nms_padded(r):
    dtype, sets, count = r.choice(FLOATS), r.choice((0, 1, 3)), r.choice(COUNTS)
    threshold, max_keep = r.choice((0.0, 0.3, 0.5, 1.0)), r.choice((0, 1, 5, 100))
    return [boxes(r, sets, count, dtype=dtype), scores(r, sets, count, dtype=dtype), threshold, max_keep]


def iou_loss(r):
    dtype, count = r.choice(FLOATS), r.choice(COUNTS)
    weight = r.choice((None, numbers(r, count, dtype=dtype)))
    against = boxes(r, count, dtype=dtype) if r.random() < 0.3 else None
    pred = boxes(r, count, dtype=dtype) if against is None else numbers(r, count, 4, dtype=dtype)
    target = boxes(r, count, dtype=dtype)
    how = [stds(r), r.choice(MODES), r.choice((1e-6, 1e-3)), 0.2, r.choice(("none", "sum", "mean"))]
    return [pred, target, weight, against, *how]


def iou_loss_backward(r):
    pred, *_, mode, _, _, reduction = arguments = iou_loss(r)
    shape = () if reduction != "none" else pred.shape if mode == "bounded" else pred.shape[:1]
    return [torch.randn(shape).to(pred.dtype), *arguments]


def assign_max_iou(r):
    dtype, batch, count, most = (
        r.choice(FLOATS),
        r.choice((0, 1, 2)),
        r.choice((*COUNTS, 600)),
        r.choice((0, 1, 5)),
    )
    shape = (count,) if r.random() < 0.5 else (batch, count)
    ignore = boxes(r, batch, 3, dtype=dtype) if r.random() < 0.5 else None
    ignore_counts = None if ignore is None else torch.randint(0, 4, (batch,))
    padded = boxes(r, batch, most, dtype=dtype), torch.randint(0, most + 1, (batch,))
    rule = [r.choice((0.0, 0.5, 0.7)), r.choice((0.3, 0.5)), r.choice((0.0, 0.3)), r.random() < 0.5]
    return [boxes(r, *shape, dtype=dtype), *padded, ignore, ignore_counts, *rule, r.choice((-1.0, 0.5))]


def winograd_conv(r):
    batch, channels, filters = r.choice((0, 1, 2)), r.choice((16, 48)), r.choice((32, 64))
    size = r.choice((0, 1, 4, 9)), r.choice((0, 1, 4, 14))
    weight = frcnn_ops.winograd_weight(torch.randn(filters, channels, 3, 3))
    bias = r.choice((None, numbers(r, filters)))
    add = r.choice((None, numbers(r, batch, filters, *size)))
    return [numbers(r, batch, channels, *size), laid_out(r, weight), bias, add, r.random() < 0.5]


def winograd_weight_gradient(r):
    batch, channels, filters = r.choice((0, 1, 2)), r.choice((16, 48)), r.choice((32, 64))
    size = r.choice((0, 1, 4, 9)), r.choice((0, 1, 4, 14))
    return [numbers(r, batch, channels, *size), numbers(r, batch, filters, *size)]


def relu_bias_gradient_(r):
    grad, out = from_cases("relu_bias_gradient")(r)
    return [grad.clone(memory_format=torch.channels_last), out]


def from_cases(name: str):
    """A generator for an operator that has none here: one of its cases in tests/cpp."""

    def generator(r):
        case = r.choice(list(CASES[name](r.randrange(2**32))))
        return [laid_out(r, v) if isinstance(v, Tensor) else v for v in arguments(name, case).values()]

    return generator


GENERATORS = {name: from_cases(name) for name in CASES if name in frcnn_ops.build_info()["ops"]} | {
    generator.__name__: generator
    for generator in (
        grid_anchors,
        encode_boxes,
        decode_boxes,
        decode_boxes_backward,
        roi_align,
        roi_align_backward,
        nms,
        nms_padded,
        iou_loss,
        iou_loss_backward,
        assign_max_iou,
        relu_bias_gradient_,
        winograd_conv,
        winograd_weight_gradient,
    )
}


# ---- hostile arguments -----------------------------------------------------------------------------------


def spoiled_tensor(r: random.Random, t: Tensor):
    if t.layout != torch.strided or t.is_complex() or t.numel() > 2**20:  # spoiled already
        return t
    if r.random() < 0.5:
        return spoiled_values(r, t)
    kind = r.randrange(7) if t.dim() else 0
    if kind == 0:
        dtypes = torch.float16, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64
        return t.to(r.choice(dtypes))
    if kind == 1:
        return t.to_sparse()
    if kind == 2:
        return t.unsqueeze(r.randint(0, t.dim()))
    dim = r.randrange(t.dim())
    if kind == 3:
        return t.select(dim, 0) if t.numel() else t.flatten()
    if kind == 4:
        return t.narrow(dim, 0, t.shape[dim] // 2)
    if kind == 5:
        return torch.cat([t, t], dim=dim)
    # larger than memory, though it takes none
    shape = [*t.shape[:dim], r.choice((2**31, 2**32, 2**40)), *t.shape[dim + 1 :]]
    return t.flatten()[:1].sum().expand(shape) if math.prod(shape) < 2**60 else t


def spoiled_values(r: random.Random, t: Tensor) -> Tensor:
    flat = t.flatten().clone()
    for _ in range(min(r.randint(1, 3), len(flat))):
        if t.dtype == torch.int64:
            flat[r.randrange(len(flat))] = r.choice((*HOSTILE_INTS, 1000))
        elif t.is_floating_point():
            flat[r.randrange(len(flat))] = r.choice((*NUMBERS, -1.0, 1000.0))
    return flat.view(t.shape)


def spoiled(r: random.Random, value):
    """Another value of the kind that an argument has."""
    if isinstance(value, Tensor):
        return spoiled_tensor(r, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return r.choice(HOSTILE_INTS)
    if isinstance(value, float):
        return r.choice(HOSTILE_FLOATS)
    if isinstance(value, str):
        return r.choice(("", "mean", "LOG", "\0", "x" * 10_000))
    if isinstance(value, list) and value:
        i = r.randrange(len(value))
        change = r.randrange(5)
        if change == 0:
            return []
        if change == 1:
            return value[:i]
        if change == 2:
            return [*value, value[i]]
        return [*value[:i], spoiled(r, value[i]), *value[i + 1 :]]
    return None if r.random() < 0.3 else value
