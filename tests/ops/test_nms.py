"""NMS against a brute-force oracle, published results, planted near-threshold pairs and hostile values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import frcnn_ops
from frcnn_ops import reference

DATA = Path(__file__).parent / "cases" / "nms.npz"
NAN, INF = math.nan, math.inf


def random_boxes(count: int, seed: int, dtype=torch.float32, extent=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * extent
    size = torch.rand(count, 2, generator=generator, dtype=dtype) * extent / 3 + 1
    # Few distinct scores, so that ties are common.
    scores = torch.randint(0, max(count // 3, 1), (count,), generator=generator).to(dtype) / max(count, 1)
    return torch.cat([corner, corner + size], dim=1), scores


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_published_results(threshold):
    data = np.load(DATA)
    boxes, scores, ids = (torch.from_numpy(data[f"nms/{name}"]) for name in ("boxes", "scores", "ids"))
    keep = torch.from_numpy(data[f"nms_{threshold}/keep"])
    batched_keep = torch.from_numpy(data[f"nms_{threshold}/batched_keep"])
    assert torch.equal(frcnn_ops.nms(boxes, scores, threshold), keep)
    assert torch.equal(frcnn_ops.batched_nms(boxes, scores, ids, threshold), batched_keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 500])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_equals_oracle(count, threshold, dtype):
    boxes, scores = random_boxes(count, seed=count, dtype=dtype)
    groups = torch.arange(count) % 5 * 10**15 - 7
    assert torch.equal(frcnn_ops.nms(boxes, scores, threshold), reference.nms(boxes, scores, None, threshold))
    assert torch.equal(
        frcnn_ops.batched_nms(boxes, scores, groups, threshold),
        reference.nms(boxes, scores, groups, threshold),
    )


coordinate = st.one_of(
    st.integers(-4, 12).map(float), st.sampled_from([NAN, INF, -INF, 1e30, -1e30, 1e-30, 0.1, 3.0000002])
)
score = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5000001, 1.0, INF, -INF])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.lists(
        st.tuples(coordinate, coordinate, coordinate, coordinate, score, st.integers(0, 2)), max_size=70
    ),
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]),
)
def test_equals_oracle_on_hostile_boxes(rows, threshold):
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes, scores, groups = table[:, :4], table[:, 4], table[:, 5].long()
    kept = frcnn_ops.batched_nms(boxes, scores, groups, threshold)
    assert torch.equal(kept, reference.nms(boxes, scores, groups, threshold))


@pytest.mark.parametrize("copies", [1, 40])  # alone, and over several vectors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_near_threshold_pairs(threshold, dtype, copies):
    """Pairs whose IoU is planted a few steps of the dtype below, at and above the threshold."""
    limit = torch.tensor(threshold, dtype=dtype)
    outcomes = set()
    height = limit * (1 - 6 * torch.finfo(dtype).eps)
    for _ in range(24):
        height = torch.nextafter(height, torch.tensor(1, dtype=dtype))
        pair = torch.tensor([[0, 0, 1, 1], [0, 0, 1, height.item()]], dtype=dtype)
        above = bool(frcnn_ops.box_iou(pair[:1], pair[1:]) > limit)
        outcomes.add(above)
        # Copies at y = 0 keep their heights exactly; x moves by whole pixels.
        shift = torch.arange(copies, dtype=dtype)[:, None, None] * torch.tensor([4, 0, 4, 0], dtype=dtype)
        boxes = (pair + shift).reshape(-1, 4)
        scores = torch.tensor([0.9, 0.8], dtype=dtype).repeat(copies)
        kept = frcnn_ops.nms(boxes, scores, threshold)
        assert len(kept) == (copies if above else 2 * copies)
    assert outcomes == {False, True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [2, 3, 4, 7, 10])
def test_exact_tie_with_the_threshold_survives(parts, dtype):
    pair = torch.tensor([[0, 0, parts, 8], [0, 0, 1, 8]], dtype=dtype)
    scores = torch.tensor([0.9, 0.8], dtype=dtype)
    tie = (torch.ones((), dtype=dtype) / parts).item()
    assert frcnn_ops.nms(pair, scores, tie).tolist() == [0, 1]
    assert frcnn_ops.nms(pair, scores, tie * (1 - 1e-6)).tolist() == [0]


def test_equal_scores_keep_the_lower_index():
    box = torch.tensor([[0.0, 0, 10, 10]])
    apart = torch.tensor([[50.0, 0, 60, 10]])
    boxes = torch.cat([apart, box, box, apart, box])
    scores = torch.full((5,), 0.5)
    assert frcnn_ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    scores[4] = torch.nextafter(scores[4], torch.tensor(1.0))
    assert frcnn_ops.nms(boxes, scores, 0.5).tolist() == [4, 0]
    # +0 and -0 are equal
    assert frcnn_ops.nms(boxes, torch.tensor([-0.0, -0.0, 0.0, 0.0, 0.0]), 0.5).tolist() == [0, 1]


def test_nan_scores_go_last():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10], [80, 0, 90, 10]])
    scores = torch.tensor([NAN, -INF, NAN, 0.5])
    assert frcnn_ops.nms(boxes, scores, 0.5).tolist() == [3, 1, 2]
    assert reference.nms(boxes, scores, None, 0.5).tolist() == [3, 1, 2]
    # nothing is absent but -inf
    padded = boxes[None], scores[None], 0.5, 4
    for found in (frcnn_ops.nms_padded(*padded), reference.nms_padded(*padded)):
        assert found[0].tolist() == [[3, 0, 2, -1]]


def test_unusable_boxes_are_kept_and_suppress_nothing():
    boxes = torch.tensor(
        [
            [NAN, 0, 10, 10],
            [0, 0, 10, 10],
            [5, 5, 5, 5],
            [5, 5, 5, 5],
            [10, 10, 0, 0],
            [-INF, -INF, INF, INF],
            [0, 0, INF, INF],
            [0, 0, 10, NAN],
        ]
    )
    scores = torch.linspace(1, 0, len(boxes))
    assert frcnn_ops.nms(boxes, scores, 0.0).tolist() == reference.nms(boxes, scores, None, 0.0).tolist()
    assert {0, 1, 2, 3, 7} <= set(frcnn_ops.nms(boxes, scores, 0.5).tolist())


def test_groups_do_not_shift_coordinates():
    """Near 1e7 float32 has steps of one pixel: boxes shifted by group would merge or part there."""
    boxes = torch.tensor([[0.0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0, 0, 0.5, 0.5]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    groups = torch.tensor([2**62, 2**62, -(2**62)])
    assert frcnn_ops.batched_nms(boxes, scores, groups, 0.5).tolist() == [0, 1, 2]
    assert frcnn_ops.batched_nms(boxes, scores, groups, 0.3).tolist() == [0, 2]


def test_more_boxes_than_a_chunk_and_any_number_of_threads():
    boxes, scores = random_boxes(9000, seed=3, extent=1000.0)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(frcnn_ops.nms(boxes, scores, 0.4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    kept = boxes[results[0]]
    overlap = frcnn_ops.box_iou(kept, kept).fill_diagonal_(0)
    assert overlap.max() <= 0.4
    # Every dropped box overlaps a kept box of at least its score.
    dropped = torch.ones(len(boxes), dtype=torch.bool)
    dropped[results[0]] = False
    reason = frcnn_ops.box_iou(boxes[dropped], kept) > 0.4
    reason &= scores[results[0]][None, :] >= scores[dropped][:, None]
    assert reason.any(dim=1).all()


@pytest.mark.parametrize("max_keep", [0, 1, 7, 100])
def test_padded_equals_nms_per_set(max_keep):
    sets = [random_boxes(90, seed=seed) for seed in range(4)]
    boxes = torch.stack([boxes for boxes, _ in sets])
    scores = torch.stack([scores for _, scores in sets])
    scores[1, ::2] = -INF
    scores[2] = -INF
    indices, counts = frcnn_ops.nms_padded(boxes, scores, 0.3, max_keep)
    expected_indices, expected_counts = reference.nms_padded(boxes, scores, 0.3, max_keep)
    assert torch.equal(indices, expected_indices) and torch.equal(counts, expected_counts)
    assert counts[2] == 0 and (indices[2] == -1).all()


def test_empty():
    none = torch.zeros(0, 4)
    assert frcnn_ops.nms(none, torch.zeros(0), 0.5).shape == (0,)
    kept = frcnn_ops.batched_nms(none, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64
    for sets, count in ((0, 5), (3, 0)):
        indices, counts = frcnn_ops.nms_padded(torch.zeros(sets, count, 4), torch.zeros(sets, count), 0.5, 2)
        assert indices.shape == (sets, 2) and (indices == -1).all() and counts.tolist() == [0] * sets


def test_non_contiguous():
    boxes, scores = random_boxes(60, seed=1)
    wide = torch.stack([boxes, boxes], dim=2)[..., 0]
    assert not wide.is_contiguous()
    expected = frcnn_ops.nms(boxes, scores, 0.3)
    assert torch.equal(frcnn_ops.nms(wide, torch.stack([scores, scores], dim=1)[:, 1], 0.3), expected)
    groups = torch.zeros(60, 2, dtype=torch.int64)[:, 0]
    assert torch.equal(frcnn_ops.batched_nms(wide, scores, groups, 0.3), expected)


@pytest.mark.parametrize(
    "boxes, scores, groups, threshold, message",
    [
        (torch.zeros(3, 5), torch.zeros(3), None, 0.5, "boxes"),
        (torch.zeros(3, 4), torch.zeros(2), None, 0.5, "scores"),
        (torch.zeros(3, 4), torch.zeros(3, 1), None, 0.5, "scores"),
        (torch.zeros(3, 4).half(), torch.zeros(3).half(), None, 0.5, "boxes.*float32"),
        (torch.zeros(3, 4), torch.zeros(3).bfloat16(), None, 0.5, "scores"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(3), 0.5, "groups.*int64"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.5, "groups"),
        (torch.zeros(3, 4), torch.zeros(3), None, 1.5, "iou_threshold"),
        (torch.zeros(3, 4), torch.zeros(3), None, NAN, "iou_threshold"),
    ],
)
def test_bad_arguments(boxes, scores, groups, threshold, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.frcnn_ops.nms(boxes, scores, groups, threshold)


def test_bad_padded_arguments():
    for max_keep in (-1, 2**31, 2**62):
        for device in ("cpu", "meta"):
            boxes, scores = torch.zeros(4, 2, 4, device=device), torch.zeros(4, 2, device=device)
            with pytest.raises(RuntimeError, match=f"max_keep is {max_keep}, expected 0 to 2147483647"):
                frcnn_ops.nms_padded(boxes, scores, 0.5, max_keep)
    with pytest.raises(RuntimeError, match=r"boxes has shape .* at most 2147483647 along each dimension"):
        frcnn_ops.nms_padded(torch.zeros(2**31, 0, 4), torch.zeros(2**31, 0), 0.5, 0)
    with pytest.raises(RuntimeError, match="scores"):
        frcnn_ops.nms_padded(torch.zeros(1, 2, 4), torch.zeros(1, 3), 0.5, 1)


def test_opcheck():
    boxes, scores = random_boxes(40, seed=0)
    groups = torch.arange(40) % 3
    torch.library.opcheck(torch.ops.frcnn_ops.nms.default, (boxes, scores, None, 0.5))
    torch.library.opcheck(torch.ops.frcnn_ops.nms.default, (boxes, scores, groups, 0.5))
    padded = (boxes.reshape(4, 10, 4), scores.reshape(4, 10), 0.5, 6)
    torch.library.opcheck(torch.ops.frcnn_ops.nms_padded.default, padded)


def test_compiles_without_graph_break():
    def best_boxes(boxes, scores):
        return boxes[frcnn_ops.nms(boxes, scores, 0.5)].sum(dim=0)

    compiled = torch.compile(best_boxes, backend="eager", fullgraph=True, dynamic=True)
    for count in (30, 45):
        boxes, scores = random_boxes(count, seed=count)
        assert torch.equal(compiled(boxes, scores), best_boxes(boxes, scores))
