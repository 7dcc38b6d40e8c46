"""Sampled proposals: who is a candidate, and what each learns."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import frcnn_ops


def arguments(device="cpu", **change):
    """Two gts, one of them without an area, and four proposals: of gt 0, background, ignored, absent."""
    given = {
        "proposals": torch.tensor([[[0.0, 0, 9, 9], [20, 20, 30, 30], [5, 5, 8, 8], [0, 0, 0, 0]]]),
        "scores": torch.tensor([[3.0, 2, 1, -torch.inf]]),
        "gt_index": torch.tensor([[1, 0, -1, 0]]),
        "gts": torch.tensor([[[0.0, 0, 10, 10], [4, 4, 4, 8], [1, 1, 2, 2]]]),
        "gt_labels": torch.tensor([[6, 3, 5]]),
        "gt_counts": torch.tensor([2]),
        "seed": torch.tensor(0),
        **change,
    }
    return [tensor.to(device) for tensor in given.values()]


def test_what_is_sampled_and_what_it_learns(device):
    results = frcnn_ops.sample_proposals(*arguments(device), 6, 6, 80)
    rois, labels, targets, counts = (result[0].tolist() for result in results)
    gt, proposal, background = [0, 0, 10, 10], [0, 0, 9, 9], [20, 20, 30, 30]
    assert counts == [2, 1]
    assert rois == [[0, *box] for box in (gt, proposal, background, *[[0, 0, 1, 1]] * 3)]
    assert labels == [6, 6, 80, 80, 80, 80]
    assert targets == [gt, gt, background, *[[0, 0, 1, 1]] * 3]


def test_positives_are_limited_to_their_share(device):
    found = set()
    for seed in range(40):
        given = arguments(device, seed=torch.tensor(seed))
        rois, labels, _, counts = frcnn_ops.sample_proposals(*given, 4, 1, 80)
        assert counts.tolist() == [[1, 1]] and labels[0].tolist() == [6, 80, 80, 80]
        found.add(rois[0, 0, 4].item())
    assert found == {9, 10}


def test_the_sample_is_that_of_sample_anchors(device):
    generator = torch.Generator().manual_seed(0)
    gts = torch.rand(2, 3, 4, generator=generator).cumsum(2).to(device)
    gt_index = torch.randint(-1, 4, (2, 500), generator=generator).to(device)
    proposals, scores = (
        torch.rand(2, 500, 4, generator=generator).to(device),
        torch.zeros(2, 500, device=device),
    )
    labels, counts = torch.zeros(2, 3, dtype=torch.long, device=device), torch.tensor([3, 3], device=device)
    seed = torch.tensor(4, device=device)
    rois, *_ = frcnn_ops.sample_proposals(proposals, scores, gt_index, gts, labels, counts, seed, 64, 16, 1)
    own = torch.tensor([[1, 2, 3]] * 2, device=device)
    index, _ = frcnn_ops.sample_anchors(torch.cat([own, gt_index], 1), seed, 64, 16)
    boxes = torch.cat([gts, proposals], 1)
    assert torch.equal(rois[..., 1:], boxes.take_along_dim(index[..., None], 1))
    assert rois[..., 0].tolist() == [[0.0] * 64, [1.0] * 64]


def test_opcheck(device):
    opcheck(torch.ops.frcnn_ops.sample_proposals, (*arguments(device), 6, 2, 80))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scores": torch.zeros(1, 3)}, r"scores has shape \[1, 3\]"),
        ({"gts": torch.zeros(2, 3, 4)}, r"gts has shape \[2, 3, 4\]"),
        ({"gt_labels": torch.zeros(1, 3)}, "gt_labels is Float, expected int64"),
        ({"gt_counts": torch.zeros(2, dtype=torch.long)}, r"gt_counts has shape \[2\]"),
        ({"proposals": torch.zeros(1, 4, 4).double()}, "proposals is Double, expected float32"),
    ],
)
def test_mistakes_are_named(change, text):
    with pytest.raises(RuntimeError, match=f"sample_proposals: {text}"):
        frcnn_ops.sample_proposals(*arguments(**change), 6, 2, 80)
