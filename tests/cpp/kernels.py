"""The operators of csrc/library.cpp on the emulated CUDA kernels, for numpy arrays.

What the bindings of csrc/cuda (*_binding.cpp) do for torch, in small: outputs, workspace, one launcher. Half
and bfloat16 arrays are uint16 with ``kind`` "half" or "bfloat16".
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import emulated
import numpy as np
from emulated import Buffer, Device

KINDS = {"float32": 0, "float64": 1, "half": 2, "bfloat16": 3}
NMS_BLOCK = 4096

Int = ctypes.c_int64
Double = ctypes.c_double
Pointer = ctypes.c_void_p


def _kind(array: np.ndarray, kind: str | None = None) -> int:
    return KINDS[kind or array.dtype.name]


def _doubles(values: Sequence[float]) -> ctypes.Array:
    return (Double * len(values))(*values)


def _floats(values: Sequence[float]) -> ctypes.Array:
    return (ctypes.c_float * max(len(values), 1))(*values)


def _ints(values: Sequence[int]) -> ctypes.Array:
    return (Int * max(len(values), 1))(*values)


class Anchors(ctypes.Structure):
    _fields_ = (
        ("strides", Pointer), ("scales", Pointer), ("ratios", Pointer),
        ("levels", Int), ("num_scales", Int), ("num_ratios", Int), ("center_offset", ctypes.c_float),
    )  # fmt: skip

    def __init__(self, strides, scales, ratios, center_offset):
        self.arrays = [_floats(strides), _floats(scales), _floats(ratios)]
        addresses = [ctypes.addressof(a) for a in self.arrays]
        super().__init__(*addresses, len(strides), len(scales), len(ratios), center_offset)


def grid_anchors(sizes, strides, scales, ratios, center_offset, seed=0) -> np.ndarray:
    """sizes: H0, W0, H1, W1, ..."""
    cells = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    with emulated.device(seed) as d:
        out = d.empty((cells * len(scales) * len(ratios), 4))
        grid = Anchors(strides, scales, ratios, center_offset)
        d.call("frcnn_cuda_grid_anchors", ctypes.byref(grid), _ints(sizes), out)
        return d.get(out)


def box_iou(a, b, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty((len(a), len(b)), a.dtype)
        d.call("frcnn_cuda_box_iou", _kind(a), d.put(a), d.put(b), len(a), len(b), out)
        return d.get(out)


def encode_boxes(boxes, targets, stds, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(boxes.shape, boxes.dtype)
        args = d.put(boxes), d.put(targets), _doubles(stds), len(boxes), out
        d.call("frcnn_cuda_encode_boxes", _kind(boxes), *args)
        return d.get(out)


def decode_boxes(boxes, deltas, stds, max_shape, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(deltas.shape, boxes.dtype)
        shape = None if max_shape is None else _ints(max_shape)
        args = d.put(boxes), d.put(deltas), _doubles(stds), shape, len(boxes), deltas.shape[1] // 4, out
        d.call("frcnn_cuda_decode_boxes", _kind(boxes), *args)
        return d.get(out)


def decode_boxes_backward(grad, boxes, deltas, stds, max_shape, seed=0) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(deltas.shape, boxes.dtype)
        shape = None if max_shape is None else _ints(max_shape)
        arrays = d.put(grad), d.put(boxes), d.put(deltas)
        args = *arrays, _doubles(stds), shape, len(boxes), deltas.shape[1] // 4, out
        d.call("frcnn_cuda_decode_boxes_backward", _kind(boxes), *args)
        return d.get(out)


class ProposalLevel(ctypes.Structure):
    _fields_ = (
        ("deltas", Pointer), ("indices", Pointer), ("height", Int), ("width", Int), ("count", Int),
        ("batch_stride", Int), ("channel_stride", Int), ("row_stride", Int), ("column_stride", Int),
    )  # fmt: skip


def decode_proposals(
    deltas, indices, image_sizes, strides, scales, ratios, center_offset, stds, min_size,
    kind=None, channels_last=False, seed=0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    batch, rows = len(image_sizes), sum(i.shape[1] for i in indices)
    with emulated.device(seed) as d:
        levels = (ProposalLevel * len(deltas))()
        for level, delta, index in zip(levels, deltas, indices, strict=True):
            _, c, h, w = delta.shape
            if channels_last:
                data, own = delta.transpose(0, 2, 3, 1), (h * w * c, 1, w * c, c)
            else:
                data, own = delta, (c * h * w, h * w, w, 1)
            pointers = d.put(data).address, d.put(index).address
            level.__init__(*pointers, h, w, index.shape[1], *own)
        boxes, valid = d.empty((batch, rows, 4)), d.empty((batch, rows), np.bool_)
        grid = Anchors(strides, scales, ratios, center_offset)
        kind = _kind(deltas[0], kind)
        args = ctypes.byref(grid), levels, d.put(image_sizes), batch, _doubles(stds), Double(min_size)
        d.call("frcnn_cuda_decode_proposals", kind, *args, boxes, valid)
        return d.get(boxes), d.get(valid)


class RoiAlign(ctypes.Structure):
    _fields_ = (
        ("sizes", Pointer), ("scales", Pointer), ("levels", Int), ("batch", Int), ("channels", Int),
        ("rois", Int), ("pooled_height", Int), ("pooled_width", Int), ("sampling_ratio", Int),
        ("aligned", ctypes.c_bool), ("channels_last", ctypes.c_bool), ("finest_scale", Double),
    )  # fmt: skip

    def __init__(self, sizes, scales, *rest):
        self.arrays = [_ints(sizes), _doubles(scales)]
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
        kind = _kind(features[0], kind)
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
        size = _size(d, "frcnn_cuda_roi_align_backward_workspace", ctypes.byref(pooling))
        kind = _kind(grad, kind)
        pointers = (Pointer * len(outs))(*(o.address for o in outs))
        arrays = d.put(grad.transpose(0, 2, 3, 1)), d.put(rois), d.empty(size, np.uint8)
        d.call("frcnn_cuda_roi_align_backward", kind, ctypes.byref(pooling), *arrays, pointers)
        return [d.get(o).transpose(0, 3, 1, 2) for o in outs]


def _size(d: Device, name: str, *args: object) -> int:
    function = getattr(d.library, name)
    function.restype = Int
    return function(*args)


def nms_padded(
    boxes, scores, iou_threshold, max_keep, groups=None, drop_absent=True, seed=0
) -> tuple[np.ndarray, np.ndarray]:
    """Small segments: boxes [S, N, 4] float32 with N up to NMS_BLOCK."""
    segments, n = scores.shape
    with emulated.device(seed) as d:
        indices, counts = d.empty((segments, max_keep), np.int64), d.empty(segments, np.int64)
        inputs = d.put(boxes), d.put(scores), None if groups is None else d.put(groups), segments, n
        d.call(
            "frcnn_cuda_nms_block",
            *inputs,
            Double(iou_threshold),
            max_keep,
            ctypes.c_bool(drop_absent),
            indices,
            counts,
        )
        return d.get(indices), d.get(counts)


def nms_grouped(boxes, scores, groups, iou_threshold, seed=0) -> np.ndarray:
    """The list form for up to NMS_BLOCK boxes [N, 4] float32: kept indices, best first."""
    n = len(boxes)
    one = boxes[None], scores[None], iou_threshold, n, groups[None]
    indices, counts = nms_padded(*one, drop_absent=False, seed=seed)
    assert np.all(indices[0, counts[0] :] == -1)
    return indices[0, : counts[0]]


class LargeNms(ctypes.Structure):
    _fields_ = (
        ("boxes", Pointer), ("scores", Pointer), ("order", Pointer), ("starts", Pointer),
        ("segment_count", Pointer), ("total", Int), ("segments", Int), ("n", Int), ("iou_threshold", Double),
        ("max_keep", Int), ("keep", Pointer), ("indices", Pointer), ("counts", Pointer),
    )  # fmt: skip


def _keys(d: Device, scores: np.ndarray) -> np.ndarray:
    keys = d.empty(scores.shape, np.int64 if scores.dtype == np.float64 else np.int32)
    d.call("frcnn_cuda_nms_keys", _kind(scores), d.put(scores), scores.size, keys)
    return d.get(keys)


def _suppress_large(d: Device, kind: int, **fields: object) -> None:
    addresses = {name: v.address if isinstance(v, Buffer) else v for name, v in fields.items()}
    problem = LargeNms(**addresses)
    size = _size(d, "frcnn_cuda_nms_large_workspace", Int(kind), Int(problem.total))
    d.call("frcnn_cuda_nms_large", kind, ctypes.byref(problem), d.empty(size, np.uint8))


def nms_large(boxes, scores, groups, iou_threshold, seed=0) -> np.ndarray:
    """The list form for any number of boxes [N, 4]: kept indices, best first."""
    n = len(boxes)
    with emulated.device(seed) as d:
        by_score = np.argsort(_keys(d, scores), kind="stable")
        by_group = np.argsort(groups[by_score], kind="stable")
        order = by_score[by_group]
        changed = np.diff(groups[order], prepend=groups[order][:1] - 1) != 0
        ids = d.put(np.cumsum(changed).astype(np.int64))
        starts, count = d.empty(n + 1, np.int64), d.empty(1, np.int64)
        d.call("frcnn_cuda_nms_segments", ids, n, starts, count)
        keep = d.empty(n, np.uint8)
        _suppress_large(
            d, _kind(boxes), boxes=d.put(boxes), order=d.put(order), starts=starts, segment_count=count,
            total=n, iou_threshold=iou_threshold, max_keep=n, keep=keep,
        )  # fmt: skip
        kept_by_score = np.zeros(n, bool)
        kept_by_score[by_group] = d.get(keep) != 0
        return by_score[kept_by_score]


def nms_padded_large(boxes, scores, iou_threshold, max_keep, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """The padded form for any number of boxes [S, N, 4]."""
    segments, n = scores.shape
    with emulated.device(seed) as d:
        order = np.argsort(_keys(d, scores), axis=1, kind="stable") + np.arange(segments)[:, None] * n
        indices, counts = d.empty((segments, max_keep), np.int64), d.empty(segments, np.int64)
        _suppress_large(
            d, _kind(boxes), boxes=d.put(boxes), scores=d.put(scores), order=d.put(order), total=segments * n,
            segments=segments, n=n, iou_threshold=iou_threshold, max_keep=max_keep, indices=indices,
            counts=counts,
        )  # fmt: skip
        return d.get(indices), d.get(counts)


MODES = ("log", "linear", "square", "giou", "diou", "ciou", "bounded")
REDUCTIONS = ("none", "sum", "mean")


def iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction, seed=0) -> np.ndarray:
    n = len(pred)
    shape = () if reduction != "none" else ((n, 4) if mode == "bounded" else (n,))
    with emulated.device(seed) as d:
        out = d.empty(shape, pred.dtype)
        inputs = [None if x is None else d.put(x) for x in (pred, target, weight, boxes)]
        workspace = d.empty(_size(d, "frcnn_cuda_iou_loss_workspace", Int(n)), np.uint8)
        settings = (
            _doubles(stds),
            n,
            MODES.index(mode),
            Double(eps),
            Double(beta),
            REDUCTIONS.index(reduction),
        )
        d.call("frcnn_cuda_iou_loss", _kind(pred), *inputs, *settings, workspace, out)
        return d.get(out)


def iou_loss_backward(
    grad, pred, target, weight, boxes, stds, mode, eps, beta, reduction, seed=0
) -> np.ndarray:
    with emulated.device(seed) as d:
        out = d.empty(pred.shape, pred.dtype)
        inputs = [None if x is None else d.put(x) for x in (grad, pred, target, weight, boxes)]
        settings = _doubles(stds), len(pred), MODES.index(mode), Double(eps), Double(beta)
        d.call(
            "frcnn_cuda_iou_loss_backward", _kind(pred), *inputs, *settings, REDUCTIONS.index(reduction), out
        )
        return d.get(out)


def assign_max_iou(
    boxes, gts, gt_counts, ignore, ignore_counts, pos_iou, neg_iou, min_pos_iou, match_low_quality,
    ignore_iof, seed=0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    batch, g = gts.shape[:2]
    n = boxes.shape[-2]
    with emulated.device(seed) as d:
        gt_index, max_iou = d.empty((batch, n), np.int64), d.empty((batch, n), boxes.dtype)
        regions = (
            (None, None, 0) if ignore is None else (d.put(ignore), d.put(ignore_counts), ignore.shape[1])
        )
        d.call(
            "frcnn_cuda_assign_max_iou", _kind(boxes), d.put(boxes), n * 4 if boxes.ndim == 3 else 0, n,
            d.put(gts), d.put(gt_counts), batch, g, *regions, Double(pos_iou), Double(neg_iou),
            Double(min_pos_iou), ctypes.c_bool(match_low_quality), Double(ignore_iof),
            d.empty((batch, g), boxes.dtype), gt_index, max_iou,
        )  # fmt: skip
        return d.get(gt_index), d.get(max_iou)
