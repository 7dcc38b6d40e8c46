"""Random samples: their sizes, their distribution, and that a seed alone decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference


def sampled(gt_index, seed, samples, most_positive):
    return frcnn_ops.sample_anchors(
        gt_index, torch.tensor(seed, device=gt_index.device), samples, most_positive
    )


@settings(max_examples=60)
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.integers(1, 50),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(-(2**63), 2**63 - 1),
)
def test_positives_up_to_their_share_then_negatives(gt_index, samples, fraction, seed):
    gt_index = torch.tensor([gt_index, gt_index[::-1]])
    index, counts = sampled(gt_index, seed, samples, int(samples * fraction))
    for row in range(2):
        positive, negative = counts[row].tolist()
        positives, negatives = index[row, :positive], index[row, positive : positive + negative]
        assert (index[row, positive + negative :] == -1).all()
        used = torch.cat([positives, negatives])
        assert len(used.unique()) == len(used)
        assert (gt_index[row, positives] > 0).all()
        assert (gt_index[row, negatives] == 0).all()
        assert positive == min(int((gt_index[row] > 0).sum()), int(samples * fraction))
        assert negative == min(int((gt_index[row] == 0).sum()), samples - positive)


def test_every_candidate_and_every_pair_is_as_likely():
    gt_index = torch.zeros(4000, 20, dtype=torch.long)
    gt_index[:, :10] = 1
    index, counts = sampled(gt_index, 0, 8, 4)
    assert (counts == 4).all()
    chosen = torch.zeros(4000, 20).scatter(1, index, 1)
    # 4000 draws of 4 out of 10: 1600 expected per candidate, standard deviation 31; of each pair of one kind
    # 533, deviation 21
    assert (chosen.sum(0) - 1600).abs().max() < 125
    pairs = chosen.T @ chosen
    for kind in (slice(0, 10), slice(10, 20)):
        own = pairs[kind, kind][~torch.eye(10, dtype=torch.bool)]
        assert (own - 533).abs().max() < 90
    # and what is drawn of one kind says nothing of the other
    assert (pairs[:10, 10:] - 640).abs().max() < 110


def test_few_of_many_are_spread_evenly():
    """As of an image's anchors: 128 of 200,000, ten times; deciles hold 128 each on average."""
    gt_index = torch.zeros(10, 200_000, dtype=torch.long)
    index, _ = sampled(gt_index, 5, 128, 0)
    deciles = torch.bincount(index.flatten() // 20_000, minlength=10)
    assert (deciles - 128).abs().max() < 50
    places = torch.arange(128).repeat(10, 1)
    correlation = torch.corrcoef(torch.stack([places.flatten().double(), index.flatten().double()]))[0, 1]
    assert abs(correlation) < 0.12


def test_a_seed_decides_alone(device):
    gt_index = torch.randint(-1, 2, (3, 3000), generator=torch.Generator().manual_seed(0)).to(device)
    first = sampled(gt_index, 7, 64, 16)
    assert all(torch.equal(a, b) for a, b in zip(first, sampled(gt_index, 7, 64, 16), strict=True))
    assert not torch.equal(first[0], sampled(gt_index, 8, 64, 16)[0])
    twins = sampled(gt_index[:1].expand(3, -1), 7, 64, 16)[0]
    assert not torch.equal(twins[0], twins[1]) and torch.equal(twins[0], first[0][0])


def test_the_order_is_a_permutation():
    for size in (1, 2, 3, 64, 1000):
        for key in (0, 2**64 - 1):
            places = [reference.shuffled(place, size, key) for place in range(size)]
            assert sorted(places) == list(range(size))


def test_opcheck(device):
    gt_index = torch.tensor([[0, 1, 0, -1, 2]], device=device)
    opcheck(torch.ops.frcnn_ops.sample_anchors, (gt_index, torch.tensor(3, device=device), 4, 1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gt_index": torch.zeros(5, dtype=torch.long)}, r"gt_index has shape \[5\], expected \[B, N\]"),
        ({"gt_index": torch.zeros(1, 5)}, "gt_index is Float, expected int64"),
        ({"seed": torch.zeros(2, dtype=torch.long)}, r"seed has shape \[2\], expected \[\]"),
        ({"seed": torch.tensor(1.0)}, "seed is Float, expected int64"),
        ({"samples": -1}, "samples is -1"),
        ({"most_positive": 5}, "most_positive is 5, expected 0 to 4"),
    ],
)
def test_mistakes_are_named(change, text):
    right = {"gt_index": torch.zeros(1, 5, dtype=torch.long), "seed": torch.tensor(0), "samples": 4}
    with pytest.raises(RuntimeError, match=f"sample_anchors: {text}"):
        frcnn_ops.sample_anchors(**{**right, "most_positive": 2, **change})
