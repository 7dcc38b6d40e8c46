"""Calls every operator at the sizes of R-50-FPN, 800x1344, and prints how many launches of each were refused.

Run by test_launches.py in a process whose launches are checked and not carried out.
"""

import json
import os
import sys
from pathlib import Path

import torch

import frcnn_ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "cuda_emulator"))
assert "EMULATED_GPU_KERNELS" not in os.environ
from emulated_gpu import faults, record  # noqa: E402

SIZES = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
STRIDES = [4, 8, 16, 32, 64]
ANCHORS = sum(3 * height * width for height, width in SIZES)
ONES = (1.0, 1.0, 1.0, 1.0)


def rows(*shape, dtype=torch.float32):
    return torch.empty(shape, device="cuda", dtype=dtype)


def nms(segments, n):
    torch.ops.frcnn_ops.nms_padded(rows(segments, n, 4), rows(segments, n), 0.7, 1000)


def pool(dtype, layout):
    maps = [rows(2, 256, height, width, dtype=dtype) for height, width in SIZES[:4]]
    maps = [map.contiguous(memory_format=layout).requires_grad_() for map in maps]
    out = frcnn_ops.pyramid_roi_align(maps, rows(1024, 5), 7, STRIDES[:4])
    torch.autograd.grad(out, maps, torch.empty_like(out))


def select_proposals(most):
    logits, deltas = ([rows(8, n, height, width) for height, width in SIZES] for n in (3, 12))
    grid = STRIDES, (8.0,), (0.5, 1.0, 2.0), ONES
    frcnn_ops.select_proposals(logits, deltas, rows(8, 2), *grid, 0.0, 0.7, most, 1000)


def select_detections(count):
    proposals, present = rows(8, count, 4), rows(8, count, dtype=torch.bool)
    sizes = rows(8, 2), rows(8, 2)
    rest = ONES, 0.05, 0.5, 100
    frcnn_ops.select_detections(rows(8, count, 81), rows(8, count, 320), proposals, present, *sizes, *rest)


def fold_norms(dtype):
    weights = [rows(512, 512, 3, 3).requires_grad_() for _ in range(53)]
    vectors = [[rows(512).requires_grad_() for _ in weights] for _ in range(4)]
    weights_of, biases = frcnn_ops.fold_norms(weights, *vectors, dtype=dtype)
    torch.autograd.backward(weights_of + biases, [torch.empty_like(t) for t in weights_of + biases])


def numbers(*shape):
    return rows(*shape, dtype=torch.int64)


def losses(dtype, gts):
    """From the maps to both heads' losses, and back, with the samples of the recipes."""
    maps = [rows(8, 15, height, width, dtype=dtype).requires_grad_() for height, width in SIZES]
    gt_index, boxes = numbers(8, ANCHORS), rows(8, gts, 4)
    index, counts = frcnn_ops.sample_anchors(gt_index, numbers(), 256, 128)
    loss, _ = frcnn_ops.rpn_loss(maps, rows(ANCHORS, 4), boxes, gt_index, index, counts, ONES)
    proposals = rows(8, 1000, 4), rows(8, 1000), numbers(8, 1000)
    truth = boxes, numbers(8, gts), numbers(8)
    sampled = frcnn_ops.sample_proposals(*proposals, *truth, numbers(), 512, 128, 80)
    rois, labels, targets, counts = sampled
    outputs = rows(8 * 512, 401, dtype=dtype).requires_grad_()
    head, *_ = frcnn_ops.box_head_loss(outputs, labels, rois, targets, counts, ONES, 80, "ciou")
    torch.autograd.grad(loss + head, [*maps, outputs])


def calls():
    for n in (1000, 1024, 1025, 2000, 2048, 2049, 4096, 20000):
        yield f"nms {n}", lambda n=n: nms(8, n)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for layout in (torch.channels_last, torch.contiguous_format):
            yield f"roi_align {dtype} {layout}", lambda dtype=dtype, layout=layout: pool(dtype, layout)
    for gts in (1, 100, 1000):
        arguments = rows(ANCHORS, 4), rows(gts, 4), 0.7, 0.3, 0.3
        yield f"assign_max_iou {gts}", lambda arguments=arguments: frcnn_ops.assign_max_iou(*arguments)
    large = torch.cuda.get_device_capability() >= (8, 0)  # 7.5 has shared memory for 2048 only, and says so
    for most in (1000, 2000, 2048, 4096)[: 4 if large else 3]:
        yield f"select_proposals {most}", lambda most=most: select_proposals(most)
        yield f"select_detections {most}", lambda most=most: select_detections(most)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield f"fold_norms {dtype}", lambda dtype=dtype: fold_norms(dtype)
        yield f"losses {dtype}", lambda dtype=dtype: losses(dtype, 128)
    yield "encode_boxes", lambda: frcnn_ops.encode_boxes(rows(512, 4), rows(512, 4))
    yield "decode_boxes", lambda: frcnn_ops.decode_boxes(rows(1000, 4), rows(1000, 320))
    yield "box_iou", lambda: frcnn_ops.box_iou(rows(100, 4), rows(ANCHORS, 4))
    yield "grid_anchors", lambda: frcnn_ops.grid_anchors(SIZES, STRIDES, device="cuda")
    pred = rows(20000, 4).requires_grad_()
    yield "iou_loss", lambda: frcnn_ops.iou_loss(pred, rows(20000, 4)).sum().backward()


found = {}
for name, call in calls():
    before = faults()
    try:
        _, log = record(call)
    except RuntimeError as error:
        log = []
        print(name, error, file=sys.stderr)
    launched = [row for row in log if row.kind == "launch" and "frcnn" in row.name]
    found[name] = (faults() - before, len(launched))
print("found", json.dumps(found))
