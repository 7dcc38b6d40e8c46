"""Temporary: ops that are not compiled yet, from reference.py. Goes away with the last compiled op."""

import re
from pathlib import Path

import torch

from . import reference

_source = (Path(__file__).parents[1] / "csrc" / "library.cpp").read_text()
try:
    from . import _C
except ImportError:
    _C = None
_built = _C.build_info()["ops"] if _C else {}
_lib = torch.library.Library("frcnn_ops", "FRAGMENT")
for _parts in re.findall(r'm\.def\(((?:\s*"[^"]*")+)\)', _source):
    _schema = "".join(re.findall(r'"([^"]*)"', _parts))
    _name = _schema.split("(")[0]
    if not _built.get(_name) and hasattr(reference, _name):
        if not _C:
            _lib.define(_schema)
        _lib.impl(_name, getattr(reference, _name), "CompositeImplicitAutograd")


def nms(boxes, scores, iou_threshold):
    return torch.ops.frcnn_ops.nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes, scores, groups, iou_threshold):
    return torch.ops.frcnn_ops.nms(boxes, scores, groups, iou_threshold)


def nms_padded(boxes, scores, iou_threshold, max_keep):
    return torch.ops.frcnn_ops.nms_padded(boxes, scores, iou_threshold, max_keep)


def roi_align(features, rois, output_size, spatial_scale, sampling_ratio=0, aligned=True):
    size = [output_size] * 2 if isinstance(output_size, int) else output_size
    return torch.ops.frcnn_ops.roi_align(
        [features], rois, size, [spatial_scale], sampling_ratio, aligned, 56.0
    )


def pyramid_roi_align(features, rois, output_size, strides, sampling_ratio=0, finest_scale=56):
    size = [output_size] * 2 if isinstance(output_size, int) else output_size
    scales = [1 / s for s in strides]
    return torch.ops.frcnn_ops.roi_align(features, rois, size, scales, sampling_ratio, True, finest_scale)
