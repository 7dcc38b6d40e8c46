"""Selection after the box head: order, ties, thresholds, and what the operator leaves out."""

from __future__ import annotations

import pytest
import torch

import frcnn_ops
from frcnn_ops import reference

STDS = (0.1, 0.1, 0.2, 0.2)


def selected(
    probabilities, proposals, deltas=None, present=None, scales=None, most=5, threshold=0.1, iou=0.5
):
    """Of one image of 100x100 pixels; probabilities [P, C] of the classes alone."""
    count, classes = probabilities.shape
    background = torch.zeros(count, 1)
    return [
        result[0]
        for result in frcnn_ops.select_detections(
            torch.cat([probabilities, background], 1)[None],
            torch.zeros(1, count, 4 * classes) if deltas is None else deltas[None],
            proposals[None],
            torch.ones(1, count, dtype=torch.bool) if present is None else present[None],
            torch.tensor([[100.0, 100.0]]),
            torch.ones(1, 2) if scales is None else torch.tensor([scales]),
            STDS,
            0.1,
            0.5,
            5,
        )
    ]


def apart(count):
    """Boxes that do not touch."""
    x = torch.arange(count) * 12.0
    return torch.stack([x, x * 0, x + 10, x * 0 + 10], 1)


def test_equal_scores_go_by_proposal_then_by_class():
    boxes, scores, labels, rows, count = selected(torch.full((3, 2), 0.5), apart(3))
    assert rows.tolist() == [0, 0, 1, 1, 2] and labels.tolist() == [0, 1, 0, 1, 0]
    assert scores.tolist() == [0.5] * 5 and count == 5
    torch.testing.assert_close(boxes, apart(3)[rows])


def test_a_score_at_the_threshold_and_nan_do_not_count():
    probabilities = torch.tensor([[0.1], [float("nan")], [0.1000001]])
    boxes, scores, labels, rows, count = selected(probabilities, apart(3))
    assert count == 1 and rows.tolist() == [2, -1, -1, -1, -1] and labels.tolist() == [0, -1, -1, -1, -1]
    assert not boxes[1:].any() and not scores[1:].any()


def test_classes_do_not_suppress_each_other():
    same = torch.tensor([[10.0, 10, 50, 50], [10, 10, 50, 52]])
    _, _, labels, rows, count = selected(torch.tensor([[0.9, 0.3], [0.8, 0.7]]), same)
    assert count == 2 and rows.tolist()[:2] == [0, 1] and labels.tolist()[:2] == [0, 1]


def test_absent_proposals_neither_count_nor_suppress():
    same = torch.tensor([[10.0, 10, 50, 50], [10, 10, 50, 52]])
    present = torch.tensor([False, True])
    _, scores, _, rows, count = selected(torch.tensor([[0.9], [0.8]]), same, present=present)
    assert count == 1 and rows[0] == 1 and scores[0] == torch.tensor(0.8)


def test_boxes_are_clipped_before_they_are_scaled_back():
    boxes, *_ = selected(torch.tensor([[0.9]]), torch.tensor([[-5.0, 80, 30, 140]]), scales=(2.0, 0.5))
    torch.testing.assert_close(boxes[0], torch.tensor([0.0, 160, 15, 200]))


def test_deltas_are_those_of_the_class():
    deltas = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0]])  # the second class moves right by 2 px
    boxes, _, labels, *_ = selected(torch.tensor([[0.9, 0.8]]), torch.tensor([[10.0, 10, 30, 30]]), deltas)
    assert labels[:2].tolist() == [0, 1]
    torch.testing.assert_close(boxes[:2], torch.tensor([[10.0, 10, 30, 30], [12, 10, 32, 30]]))


def test_many_proposals_of_many_classes_agree_with_the_reference():
    """The size of the detector's own, where nearly all of the work is thrown away."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(2, 1000, 81, generator=generator).mul(2).softmax(-1)
    corner = torch.rand(2, 1000, 2, generator=generator) * 800
    proposals = torch.cat([corner, corner + 20 + torch.rand(2, 1000, 2, generator=generator) * 200], -1)
    deltas = torch.randn(2, 1000, 320, generator=generator)
    rest = torch.ones(2, 1000, dtype=torch.bool), torch.tensor([[800.0, 1333]] * 2), torch.ones(2, 2)
    arguments = probabilities, deltas, proposals, *rest, STDS, 0.05, 0.5, 100
    got, want = frcnn_ops.select_detections(*arguments), reference.select_detections(*arguments)
    assert got[4].tolist() == [100, 100]
    for index in (2, 3, 4):
        assert torch.equal(got[index], want[index])
    torch.testing.assert_close(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deltas": torch.zeros(1, 2, 8)}, r"deltas has shape \[1, 2, 8\], expected \[1, 2, 12\], or 4"),
        ({"present": torch.ones(1, 2)}, "present is Float, expected bool"),
        ({"score_threshold": 1.5}, r"score_threshold is 1.5, expected a number in \[0, 1\]"),
        ({"max_detections": -1}, "max_detections is -1, expected 0 to"),
        (
            {"probabilities": torch.zeros(1, 2, 4, dtype=torch.bfloat16)},
            "probabilities is BFloat16",
        ),
        ({"sizes": torch.zeros(2, 2)}, r"sizes has shape \[2, 2\], expected \[B, 2\]"),
    ],
)
def test_arguments_are_checked(changes, message):
    arguments = {
        "probabilities": torch.zeros(1, 2, 4),
        "deltas": torch.zeros(1, 2, 12),
        "proposals": torch.zeros(1, 2, 4),
        "present": torch.ones(1, 2, dtype=torch.bool),
        "sizes": torch.ones(1, 2),
        "scales": torch.ones(1, 2),
        "stds": STDS,
        "score_threshold": 0.05,
        "iou_threshold": 0.5,
        "max_detections": 3,
    }
    with pytest.raises(RuntimeError, match=f"select_detections: {message}"):
        frcnn_ops.select_detections(**{**arguments, **changes})
