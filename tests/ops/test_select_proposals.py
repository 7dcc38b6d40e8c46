"""Proposals from a region proposal network's outputs: order, ties, filters, and the detector's own sizes."""

from __future__ import annotations

import pytest
import torch

import frcnn_ops
from frcnn_ops import reference

SHAPES = {"scales": (8.0,), "ratios": (0.5, 1.0, 2.0), "stds": (1.0, 1.0, 1.0, 1.0)}
ONE = {"scales": (1.0,), "ratios": (1.0,), "stds": (1.0, 1.0, 1.0, 1.0)}


def selected(logits, size=(100.0, 100.0), pre_nms=100, count=6, min_size=0.0, iou=0.5):
    """Of one image and one level with one square anchor per cell, as large as it: they do not overlap."""
    logits = torch.tensor(logits)[None, None]
    arguments = [torch.zeros(1, 4, *logits.shape[2:])], torch.tensor([size]), [16.0]
    boxes, scores = frcnn_ops.select_proposals(
        [logits], *arguments, **ONE, min_size=min_size, iou_threshold=iou, pre_nms=pre_nms, count=count
    )
    return boxes[0], scores[0].tolist()


def test_best_first_and_padded():
    boxes, scores = selected([[0.5, 2.0], [-1.0, 0.0]])
    assert scores == [2.0, 0.5, 0.0, -1.0, -torch.inf, -torch.inf]
    # anchors are centered on the corners of their cells
    assert boxes[:2].tolist() == [[8, 0, 24, 8], [0, 0, 8, 8]] and not boxes[4:].any()


def test_equal_logits_go_by_anchor_and_the_limit_counts_before_nms():
    boxes, scores = selected([[1.0, 1.0, 1.0], [1.0, 3.0, 1.0]], pre_nms=3)
    assert scores[:4] == [3.0, 1.0, 1.0, -torch.inf]
    assert boxes[:3, 0].tolist() == [8, 0, 8] and boxes[:3, 1].tolist() == [8, 0, 0]


def test_nan_and_minus_infinity_propose_nothing():
    _, scores = selected([[float("nan"), 1.0], [-torch.inf, torch.inf]])
    assert scores == [torch.inf, 1.0] + [-torch.inf] * 4


def test_small_boxes_are_dropped_and_not_replaced():
    # where the image begins, half of an anchor is cut off, and 8 pixels are left
    boxes, scores = selected([[5.0, 4.0], [3.0, 2.0]], min_size=8.0)
    assert scores[:2] == [2.0, -torch.inf] and boxes[0].tolist() == [8, 8, 24, 24]
    _, scores = selected([[5.0, 4.0], [3.0, 2.0]], pre_nms=3, min_size=8.0)
    assert scores[0] == -torch.inf


def test_the_levels_are_merged_by_score_and_do_not_suppress_each_other():
    logits = [torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0]]]]), torch.tensor([[[[2.0]]]])]
    deltas = [torch.zeros(1, 4, 1, 1)] * 3
    boxes, scores = frcnn_ops.select_proposals(
        logits, deltas, torch.tensor([[99.0, 99.0]]), [16.0, 16.0, 32.0], **ONE,
        min_size=0.0, iou_threshold=0.0, pre_nms=5, count=3,
    )  # fmt: skip
    assert scores.tolist() == [[2.0, 1.0, 1.0]]
    assert boxes[0].tolist() == [[0, 0, 16, 16], [0, 0, 8, 8], [0, 0, 8, 8]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_detectors_own_sizes_agree_with_the_reference(layout):
    """Two images of 400x672 on five levels, logits and deltas as slices of one map."""
    generator = torch.Generator().manual_seed(1)
    strides, logits, deltas = [4.0, 8.0, 16.0, 32.0, 64.0], [], []
    for stride in strides:
        size = 2, 15, -(-400 // int(stride)), -(-672 // int(stride))
        maps = torch.randn(size, generator=generator).mul(0.5).contiguous(memory_format=layout)
        logits.append(maps[:, :3].mul(20).round().div(10))  # with ties
        deltas.append(maps[:, 3:])
    sizes = torch.tensor([[400.0, 672.0], [390.0, 500.0]])
    rest = SHAPES["scales"], SHAPES["ratios"]
    got = frcnn_ops.select_proposals(
        logits, deltas, sizes, strides, *rest, SHAPES["stds"], 0.0, 0.7, 1000, 1000
    )
    want = reference.select_proposals(
        logits, deltas, sizes, strides, *rest, 0.0, SHAPES["stds"], 0.0, 0.7, 1000, 1000
    )
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": []}, "there are 0 logits, 1 deltas and 1 strides"),
        ({"deltas": [torch.zeros(1, 4, 2, 3)]}, r"deltas has shape \[1, 4, 2, 3\], expected \[B, 4"),
        ({"logits": [torch.zeros(1, 1, 2, 2).half()]}, "logits is Half but image_sizes is Float"),
        ({"count": -1}, "count is -1, expected 0 to"),
        ({"iou_threshold": 2.0}, r"iou_threshold is 2, expected a number in \[0, 1\]"),
        ({"min_size": float("nan")}, "min_size is nan, expected a number of pixels"),
    ],
)
def test_arguments_are_checked(changes, message):
    arguments = {
        "logits": [torch.zeros(1, 1, 2, 2)],
        "deltas": [torch.zeros(1, 4, 2, 2)],
        "image_sizes": torch.ones(1, 2),
        "strides": [4.0],
        **ONE,
        "min_size": 0.0,
        "iou_threshold": 0.5,
        "pre_nms": 10,
        "count": 10,
    }
    with pytest.raises(RuntimeError, match=f"select_proposals: {message}"):
        frcnn_ops.select_proposals(**{**arguments, **changes})
