"""Operators of Faster R-CNN as compiled CPU and CUDA kernels.

Boxes are float (x1, y1, x2, y2) in pixels everywhere; empty inputs work everywhere.
"""

from .extension import build_info, describe_build  # isort: skip  # first: it defines the operators
from .assign_max_iou import assign_max_iou
from .box_coder import decode_boxes, encode_boxes
from .box_head_loss import box_head_loss
from .box_iou import box_iou
from .conv_epilogue import conv_epilogue
from .fold_norms import fold_norms
from .grid_anchors import grid_anchors
from .iou_loss import bounded_iou_loss, ciou_loss, diou_loss, giou_loss, iou_loss
from .nms import batched_nms, nms, nms_padded
from .normalize_images import normalize_images
from .relu_bias_gradient import relu_bias_gradient
from .resize_images import resize_images
from .roi_align import pyramid_roi_align, roi_align
from .rpn_loss import rpn_loss
from .sample_anchors import sample_anchors
from .sample_proposals import sample_proposals
from .select_detections import select_detections
from .select_proposals import select_proposals
from .train_conv import train_conv, train_conv_fits
from .winograd_conv import (
    winograd_available,
    winograd_conv,
    winograd_fits,
    winograd_weight,
    winograd_weight_gradient,
)


def onnx_translations() -> dict:
    """What `torch.onnx.export(…, custom_translation_table=…)` takes for the operators that detection uses.

    They become standard operators of ONNX, opset 18. Raises ImportError without onnxscript.
    """
    from .onnx import TRANSLATIONS

    return TRANSLATIONS


__all__ = [
    "assign_max_iou",
    "batched_nms",
    "bounded_iou_loss",
    "box_head_loss",
    "box_iou",
    "build_info",
    "ciou_loss",
    "conv_epilogue",
    "decode_boxes",
    "describe_build",
    "diou_loss",
    "encode_boxes",
    "fold_norms",
    "giou_loss",
    "grid_anchors",
    "iou_loss",
    "nms",
    "nms_padded",
    "normalize_images",
    "onnx_translations",
    "pyramid_roi_align",
    "relu_bias_gradient",
    "resize_images",
    "roi_align",
    "rpn_loss",
    "sample_anchors",
    "sample_proposals",
    "select_detections",
    "select_proposals",
    "train_conv",
    "train_conv_fits",
    "winograd_available",
    "winograd_conv",
    "winograd_fits",
    "winograd_weight",
    "winograd_weight_gradient",
]
