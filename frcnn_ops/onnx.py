"""The operators that detection takes, in the standard operators of ONNX (opset 18), which every runtime has.

Each function stands for the operator of its name, whose docstring says what it computes; torch's exporter
calls it with the graph's values and writes down what it calls. Shape shorthand as there.

What is not the same, whatever runs it: a NaN is not looked after; RoIs far outside the map
are sampled at its border instead of pooling to zero; which of two boxes with the same score goes first, and
rounding, are the runtime's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18
Value = Any
"""A tensor of the graph that is written."""

FLOAT, INT64, BOOL = 1, 7, 9  # of onnx.TensorProto.DataType
LOWEST = torch.finfo(torch.float32).min
MAX_LOG_RATIO = 4.135166556742356  # log(1000 / 16)


def normalize_images(
    images: Value, sizes: Value, mean: Sequence[float], std: Sequence[float], rgb: bool, dtype: int
) -> Value:
    pixels = op.Cast(images, to=FLOAT)
    if rgb:
        pixels = op.Gather(pixels, ints(2, 1, 0), axis=3)
    pixels = op.Div(op.Sub(pixels, floats(mean)), floats(std))
    height, width = op.Shape(images, start=1, end=2), op.Shape(images, start=2, end=3)
    rows = op.Less(counted(height), op.Slice(sizes, ints(0), ints(1), ints(1)))  # [B, H]
    columns = op.Less(counted(width), op.Slice(sizes, ints(1), ints(2), ints(1)))  # [B, W]
    inside = op.And(op.Unsqueeze(rows, ints(2, 3)), op.Unsqueeze(columns, ints(1, 3)))
    pixels = op.Where(inside, pixels, floats([0.0]))
    return op.Cast(op.Transpose(pixels, perm=[0, 3, 1, 2]), to=dtype)


def select_proposals(
    logits: Sequence[Value],
    deltas: Sequence[Value],
    image_sizes: Value,
    strides: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[float],
    center_offset: float,
    stds: Sequence[float],
    min_size: float,
    iou_threshold: float,
    pre_nms: int,
    count: int | Value,
) -> tuple[Value, Value]:
    limits = limits_of(image_sizes, 1)
    found, found_scores = [], []
    for level, delta, stride in zip(logits, deltas, strides, strict=True):
        anchors = grid_anchors(level, stride, scales, ratios, center_offset)
        logit = op.Reshape(op.Transpose(level, perm=[0, 2, 3, 1]), ints(0, -1))
        all_deltas = op.Reshape(op.Transpose(delta, perm=[0, 2, 3, 1]), ints(0, -1, 4))
        score, index = op.TopK(logit, op.Min(op.Shape(logit, start=1), ints(pre_nms)), axis=1)
        boxes = decode(op.Gather(anchors, index, axis=0), rows_of(all_deltas, index), stds, limits)
        low, high = op.Split(boxes, axis=-1, num_outputs=2)
        smallest = op.ReduceMin(op.Sub(high, low), ints(-1), keepdims=0)
        score = op.Where(op.Greater(smallest, floats([min_size])), score, floats([-float("inf")]))
        found.append(boxes)
        found_scores.append(only(kept(boxes, score, iou_threshold, LOWEST), score, -float("inf")))
    boxes, scores = op.Concat(*found, axis=1), op.Concat(*found_scores, axis=1)
    best, index = op.TopK(scores, ints(count) if isinstance(count, int) else count, axis=1)
    exist = op.Unsqueeze(op.Greater(best, floats([LOWEST])), ints(2))
    return op.Where(exist, rows_of(boxes, index), floats([0.0])), best


def roi_align(
    features: Sequence[Value],
    rois: Value,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    finest_scale: float,
) -> Value:
    image = op.Cast(op.Gather(rois, number(0), axis=1), to=INT64)
    boxes = op.Slice(rois, ints(1), ints(5), ints(1))
    low, high = op.Split(boxes, axis=1, num_outputs=2)
    area = op.ReduceProd(op.Sub(high, low), ints(1), keepdims=0)
    size = op.Add(op.Div(op.Sqrt(area), floats([finest_scale])), floats([1e-6]))
    # the level is floor(log2(size)), clamped: it is at least n where the size is at least 2**n
    begun = [op.GreaterOrEqual(image, ints(0))]  # all of them
    begun += [op.GreaterOrEqual(size, floats([2.0**level])) for level in range(1, len(features))]
    pooled, order = [], []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        is_here = begun[level]
        if level + 1 < len(features):
            is_here = op.And(is_here, op.Not(begun[level + 1]))
        index = op.Squeeze(op.NonZero(is_here), ints(0))
        order.append(index)
        pooled.append(
            op.RoiAlign(
                feature,
                op.CastLike(op.Gather(boxes, index, axis=0), feature),
                op.Gather(image, index, axis=0),
                output_height=output_size[0],
                output_width=output_size[1],
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                mode="avg",
            )
        )
    back = op.Concat(*order, axis=0)
    places = op.Range(number(0), op.Size(back), number(1))
    return op.Gather(op.Concat(*pooled, axis=0), op.ScatterElements(back, back, places, axis=0), axis=0)


def select_detections(
    probabilities: Value,
    deltas: Value,
    proposals: Value,
    present: Value,
    sizes: Value,
    scales: Value,
    stds: Sequence[float],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Value, ...]:
    classes, count = probabilities.shape[2] - 1, probabilities.shape[1]
    scores = op.Slice(probabilities, ints(0), ints(classes), ints(2))
    scores = op.Where(op.Unsqueeze(present, ints(2)), scores, floats([0.0]))  # [B, P, C]
    deltas = op.Reshape(deltas, ints(0, 0, -1, 4))
    proposals = op.Unsqueeze(proposals, ints(2))
    boxes = decode(proposals, deltas, stds, limits_of(sizes, 2))
    boxes = op.Div(boxes, op.Unsqueeze(op.Concat(scales, scales, axis=1), ints(1, 2)))
    # class-agnostic boxes are every class's
    boxes = op.Expand(boxes, ints(1, 1, classes, 1))  # [B, P, C, 4]

    by_class = op.Reshape(op.Transpose(boxes, perm=[0, 2, 1, 3]), ints(-1, count, 4))
    class_scores = op.Reshape(op.Transpose(scores, perm=[0, 2, 1]), ints(-1, count))  # [B * C, P]
    keep = kept(by_class, class_scores, iou_threshold, score_threshold)
    keep = op.Transpose(op.Reshape(keep, ints(-1, classes, count)), perm=[0, 2, 1])  # [B, P, C]

    flat = op.Reshape(only(keep, scores, -1.0), ints(0, count * classes))
    best, index = op.TopK(flat, ints(min(max_detections, count * classes)), axis=1)
    missing = max(0, max_detections - count * classes)
    if missing:
        best = op.Pad(best, ints(0, 0, 0, missing), floats(-1.0))
        index = op.Pad(index, ints(0, 0, 0, missing), number(0))
    used = op.Greater(best, floats([-0.5]))
    rows = op.Div(index, ints(classes))
    labels = op.Sub(index, op.Mul(rows, ints(classes)))
    chosen = rows_of(op.Reshape(boxes, ints(0, count * classes, 4)), index)
    return (
        op.Where(op.Unsqueeze(used, ints(2)), chosen, floats([0.0])),
        op.Where(used, best, floats([0.0])),
        op.Where(used, labels, ints(-1)),
        op.Where(used, rows, ints(-1)),
        op.ReduceSum(op.Cast(used, to=INT64), ints(1), keepdims=0),
    )


TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.frcnn_ops.normalize_images.default: normalize_images,
    torch.ops.frcnn_ops.select_proposals.default: select_proposals,
    torch.ops.frcnn_ops.roi_align.default: roi_align,
    torch.ops.frcnn_ops.select_detections.default: select_detections,
}


def ints(*numbers: int) -> Value:
    """int64 [N]."""
    return op.Constant(value_ints=list(numbers))


def number(value: int) -> Value:
    """int64 []."""
    return op.Constant(value_int=value)


def floats(numbers: Sequence[float] | float) -> Value:
    """float32 [N], or [] of one number."""
    if isinstance(numbers, float):
        return op.Constant(value_float=numbers)
    return op.Constant(value_floats=[float(number) for number in numbers])


def counted(size: Value) -> Value:
    """0, 1, … below an int64 [1], as float32."""
    numbers = op.Range(number(0), op.Squeeze(size), number(1))
    return op.Cast(numbers, to=FLOAT)


def limits_of(sizes: Value, axes: int) -> Value:
    """(height, width), [B, 2] -> the largest x1 y1 x2 y2, [B, 1, 4], or with one more axis."""
    corners = op.Gather(sizes, ints(1, 0, 1, 0), axis=1)
    return op.Unsqueeze(corners, ints(*range(1, axes + 1)))


def rows_of(table: Value, index: Value) -> Value:
    """[B, N, 4] at [B, K] -> [B, K, 4]."""
    return op.GatherND(table, op.Unsqueeze(index, ints(2)), batch_dims=1)


def only(keep: Value, scores: Value, otherwise: float) -> Value:
    return op.Where(keep, scores, floats([otherwise]))


def grid_anchors(
    level: Value, stride: float, scales: Sequence[float], ratios: Sequence[float], center_offset: float
) -> Value:
    """The anchors of a map [B, A, H, W] -> [H * W * A, 4]; folded to a constant where the size is known."""
    cell = torch.ops.frcnn_ops.grid_anchors([1, 1], [stride], scales, ratios, center_offset, "cpu", None)
    height, width, both = op.Shape(level, start=2, end=3), op.Shape(level, start=3), op.Shape(level, start=2)
    y = op.Expand(op.Unsqueeze(counted(height), ints(1)), both)
    x = op.Expand(op.Unsqueeze(counted(width), ints(0)), both)
    corners = op.Concat(*(op.Unsqueeze(axis, ints(2)) for axis in (x, y, x, y)), axis=2)
    corners = op.Mul(op.Unsqueeze(corners, ints(2)), floats([stride]))  # [H, W, 1, 4]
    cells = op.Reshape(floats(cell.flatten().tolist()), ints(1, 1, -1, 4))
    return op.Reshape(op.Add(corners, cells), ints(-1, 4))


def decode(boxes: Value, deltas: Value, stds: Sequence[float], limits: Value) -> Value:
    """`frcnn_ops.decode_boxes` of [..., 4], clipped to 0 and the limits."""
    low, high = op.Split(boxes, axis=-1, num_outputs=2)
    shift, growth = op.Split(op.Mul(deltas, floats(stds)), axis=-1, num_outputs=2)
    size = op.Sub(high, low)
    center = op.Add(op.Mul(op.Add(low, high), floats([0.5])), op.Mul(size, shift))
    growth = op.Clip(growth, floats(-MAX_LOG_RATIO), floats(MAX_LOG_RATIO))
    half = op.Mul(op.Mul(size, op.Exp(growth)), floats([0.5]))
    moved = op.Concat(op.Sub(center, half), op.Add(center, half), axis=-1)
    return op.Min(op.Max(moved, floats([0.0])), limits)


def kept(boxes: Value, scores: Value, iou_threshold: float, score_threshold: float) -> Value:
    """Which boxes [S, N, 4] of scores [S, N] NMS within each segment keeps: bool [S, N].

    Those of a score up to the threshold are not kept.
    """
    most = op.Shape(scores, start=1)
    chosen = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, ints(1)), most, floats([iou_threshold]), floats([score_threshold])
    )
    places = op.Gather(chosen, ints(0, 2), axis=1)  # (segment, class 0, box)
    ones = op.Expand(number(1), op.Shape(places, end=1))
    none = op.Expand(number(0), op.Shape(scores))
    return op.Cast(op.ScatterND(none, places, ones), to=BOOL)
