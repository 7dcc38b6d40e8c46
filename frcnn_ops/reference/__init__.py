"""The obvious pure-torch version of every operator: the oracle of the tests and the benchmarks.

Each function takes the arguments of the operator of the same name in ``csrc/bindings`` and returns what
it returns. Nothing here is fast, nothing is clever, and whatever should have a gradient gets it from plain
autograd. Numbers that are not finite follow the kernels' rules, which the operators' docstrings state.
"""

from __future__ import annotations

from .boxes import assign_max_iou, base_anchors, box_iof, box_iou, decode_boxes, encode_boxes, grid_anchors
from .images import conv_epilogue, normalize_images, relu_bias_gradient, relu_bias_gradient_, resize_images
from .losses import box_head_loss, iou_loss, rpn_loss
from .roi_align import roi_align, roi_levels
from .samples import fold_norms, sample_anchors, sample_proposals, shuffled
from .selection import nms, nms_padded, select_detections, select_proposals

__all__ = [
    "assign_max_iou",
    "base_anchors",
    "box_head_loss",
    "box_iof",
    "box_iou",
    "conv_epilogue",
    "decode_boxes",
    "encode_boxes",
    "fold_norms",
    "grid_anchors",
    "iou_loss",
    "nms",
    "nms_padded",
    "normalize_images",
    "relu_bias_gradient",
    "relu_bias_gradient_",
    "resize_images",
    "roi_align",
    "roi_levels",
    "rpn_loss",
    "sample_anchors",
    "sample_proposals",
    "select_detections",
    "select_proposals",
    "shuffled",
]
