"""A call of each CUDA operator of fixed output shape, with inputs on the CPU, for test_cuda_only.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import frcnn_ops

OPS = torch.ops.frcnn_ops
STRIDES = [4.0, 8.0, 16.0, 32.0]
SIZES = [(50, 68), (25, 34), (13, 17), (7, 9)]
Call = tuple[Callable[..., object], dict[str, object]]


def boxes(n: int, extent: float = 200.0) -> Tensor:
    corner = torch.rand(n, 2) * extent * 0.7
    return torch.cat([corner, corner + torch.rand(n, 2) * extent * 0.3 + 1], dim=1)


def calls(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Call]:
    """Each operator of fixed output shape with inputs on the CPU, features of ``dtype``, channels-last."""
    torch.manual_seed(seed)
    features = [torch.randn(2, 64, h, w).to(dtype, memory_format=torch.channels_last) for h, w in SIZES]
    rois = torch.cat([torch.randint(0, 2, (100, 1)).float(), boxes(100)], dim=1)
    pooled = torch.randn(100, 64, 7, 7).to(dtype, memory_format=torch.channels_last)
    pooling = ([1 / s for s in STRIDES], 0, True, 56.0)
    counts, ones = torch.tensor([9, 4]), (1.0, 1.0, 1.0, 1.0)
    loss = (None, None, ones, "giou", 1e-6, 0.0, "mean")
    logits, deltas = ([torch.randn(2, n, h, w) for h, w in SIZES] for n in (3, 12))
    grid = STRIDES, (8.0,), (0.5, 1.0, 2.0), ones
    image_sizes = torch.tensor([[200.0, 272.0], [180.0, 260.0]])
    sizes = [n for size in SIZES for n in size]
    return {
        "box_iou": (OPS.box_iou, {"a": boxes(50), "b": boxes(300)}),
        "encode_boxes": (OPS.encode_boxes, {"boxes": boxes(50), "targets": boxes(50), "stds": ones}),
        "decode_boxes": (
            OPS.decode_boxes,
            {"boxes": boxes(50), "deltas": torch.randn(50, 12), "stds": ones, "max_shape": (150, 160)},
        ),
        "select_proposals": (
            lambda logits, deltas, image_sizes: frcnn_ops.select_proposals(
                logits, deltas, image_sizes, *grid, 0.0, 0.7, 100, 150
            ),
            {"logits": logits, "deltas": deltas, "image_sizes": image_sizes},
        ),
        "select_detections": (
            lambda probabilities, deltas, proposals, present, image_sizes: frcnn_ops.select_detections(
                probabilities, deltas, proposals, present, image_sizes, image_sizes / 100, ones, 0.1, 0.5, 40
            ),
            {
                "probabilities": torch.randn(2, 60, 6).mul(2).softmax(-1), "deltas": torch.randn(2, 60, 20),
                "proposals": boxes(120).view(2, 60, 4), "present": torch.rand(2, 60) < 0.9,
                "image_sizes": image_sizes,
            },
        ),
        "roi_align": (
            lambda features, rois: OPS.roi_align(features, rois, (7, 7), *pooling),
            {"features": features, "rois": rois},
        ),
        "roi_align_backward": (
            lambda grad, rois: OPS.roi_align_backward(grad, rois, sizes, 2, *pooling),
            {"grad": pooled, "rois": rois},
        ),
        "nms_padded": (
            lambda boxes, scores: OPS.nms_padded(boxes, scores, 0.5, 200),
            {"boxes": boxes(2000).view(4, 500, 4), "scores": torch.rand(4, 500)},
        ),
        "nms_padded_large": (
            lambda boxes, scores: OPS.nms_padded(boxes, scores, 0.5, 200),
            {"boxes": boxes(10000, 2000.0).view(2, 5000, 4), "scores": torch.rand(2, 5000)},
        ),
        "iou_loss": (lambda pred, target: OPS.iou_loss(pred, target, *loss), _pairs(300)),
        "iou_loss_large": (lambda pred, target: OPS.iou_loss(pred, target, *loss), _pairs(30000)),
        "iou_loss_backward": (
            lambda grad, pred, target: OPS.iou_loss_backward(grad, pred, target, *loss),
            {"grad": torch.tensor(2.0), **_pairs(300)},
        ),
        "assign_max_iou": (
            lambda boxes, gts, counts, ignore: OPS.assign_max_iou(
                boxes, gts, counts, ignore, counts, 0.5, 0.4, 0.3, True, 0.5
            ),
            {
                "boxes": boxes(3000), "gts": boxes(20).view(2, 10, 4), "counts": counts,
                "ignore": boxes(20).view(2, 10, 4),
            },
        ),
        **calls_of_images_and_convolutions(dtype),
        **calls_of_the_losses(dtype),
    }  # fmt: skip


def calls_of_images_and_convolutions(dtype: torch.dtype) -> dict[str, Call]:
    maps = [torch.randn(2, 16, 13, 17).to(dtype, memory_format=torch.channels_last) for _ in range(2)]
    norms = {name: [torch.randn(24), torch.randn(16)] for name in ("gains", "shifts", "means")}
    norms |= {"weights": [torch.randn(24, 16, 3, 3), torch.randn(16, 24, 1, 1)]}
    norms |= {"variances": [torch.rand(24) + 0.5, torch.rand(16) + 0.5]}
    pixels = [torch.randint(0, 256, (size, 30, 3), dtype=torch.uint8) for size in (20, 25)]
    return {
        "fold_norms": (
            lambda weights, gains, shifts, means, variances: OPS.fold_norms(
                weights, gains, shifts, means, variances, 1e-5, dtype
            ),
            norms,
        ),
        "fold_norms_backward": (
            lambda grads, weights, gains, shifts, means, variances: OPS.fold_norms_backward(
                grads, weights, gains, shifts, means, variances, 1e-5
            ),
            {"grads": [g.to(dtype) for g in (torch.randn(24, 16, 3, 3), torch.randn(16, 24, 1, 1),
                                             torch.randn(24), torch.randn(16))], **norms},
        ),
        "conv_epilogue": (
            lambda x, bias, add: OPS.conv_epilogue(x, bias, add, True),
            {"x": maps[0], "bias": torch.randn(16).to(dtype), "add": maps[1]},
        ),
        "relu_bias_gradient": (OPS.relu_bias_gradient, {"grad": maps[0], "out": maps[1]}),
        "resize_images": (
            lambda images: OPS.resize_images(images, [33, 50, 60, 72], 64, 96), {"images": pixels}
        ),
        "normalize_images": (
            lambda images, sizes: OPS.normalize_images(images, sizes, (9, 8, 7), (2, 3, 4), True, dtype),
            {"images": torch.randint(0, 256, (2, 33, 50, 3), dtype=torch.uint8),
             "sizes": torch.tensor([[30.0, 50.0], [33.0, 41.0]])},
        ),
    }  # fmt: skip


def calls_of_the_losses(dtype: torch.dtype) -> dict[str, Call]:
    sizes, stds, classes = [(13, 17), (7, 9)], (0.1, 0.1, 0.2, 0.2), 5
    n = sum(3 * h * w for h, w in sizes)
    seed, gts = torch.randint(1000, ()), boxes(12).view(2, 6, 4)
    gt_index = torch.randint(-1, 7, (2, n))
    index, counts = OPS.sample_anchors(gt_index, seed, 64, 32)
    rpn = {
        "maps": [torch.randn(2, 15, *s).to(dtype, memory_format=torch.channels_last) for s in sizes],
        "anchors": boxes(n), "gts": gts, "gt_index": gt_index, "index": index, "counts": counts,
    }  # fmt: skip
    drawn = {
        "proposals": boxes(200).view(2, 100, 4), "scores": torch.randn(2, 100),
        "gt_index": torch.randint(-1, 7, (2, 100)), "gts": gts,
        "gt_labels": torch.randint(0, classes, (2, 6)), "gt_counts": torch.tensor([6, 2]), "seed": seed,
    }  # fmt: skip
    sampled = OPS.sample_proposals(*drawn.values(), 32, 8, classes)
    box = dict(zip(("rois", "labels", "targets", "counts"), sampled, strict=True))
    box = {name: box[name] for name in ("labels", "rois", "targets", "counts")}
    box = {"outputs": torch.randn(64, 5 * classes + 1).to(dtype), **box}
    grads = {"by_class": torch.tensor(1.5), "by_box": torch.tensor(0.5)}
    settings = stds, classes, "giou", 2.0
    deltas = {"grad": torch.randn(50, 12), "boxes": boxes(50), "deltas": torch.randn(50, 12)}
    return {
        "sample_anchors": (
            lambda gt_index, seed: OPS.sample_anchors(gt_index, seed, 64, 32),
            {"gt_index": gt_index, "seed": seed},
        ),
        "sample_proposals": (lambda **kw: OPS.sample_proposals(*kw.values(), 32, 8, classes), drawn),
        "rpn_loss": (lambda **kw: OPS.rpn_loss(*kw.values(), stds), rpn),
        "rpn_loss_backward": (lambda **kw: OPS.rpn_loss_backward(*kw.values(), stds), {**grads, **rpn}),
        "box_head_loss": (lambda **kw: OPS.box_head_loss(*kw.values(), *settings), box),
        "box_head_loss_backward": (
            lambda **kw: OPS.box_head_loss_backward(*kw.values(), *settings), {**grads, **box}
        ),
        "decode_boxes_backward": (
            lambda **kw: OPS.decode_boxes_backward(*kw.values(), stds, (150, 160)), deltas
        ),
    }  # fmt: skip


def _pairs(n: int) -> dict[str, Tensor]:
    target = boxes(n)
    return {"pred": target + torch.randn(n, 4), "target": target}


def on_gpu(value: object) -> object:
    if isinstance(value, Tensor):
        return value.cuda()
    return [v.cuda() for v in value] if isinstance(value, list) else value


def run(call: Call) -> list[Tensor]:
    function, arguments = call
    result = function(**arguments)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def to_gpu(call: Call) -> Call:
    return call[0], {name: on_gpu(value) for name, value in call[1].items()}
