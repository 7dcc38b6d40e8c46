import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

RPN = {"pos_iou": 0.7, "neg_iou": 0.3, "min_pos_iou": 0.3}
RCNN = {"pos_iou": 0.5, "neg_iou": 0.5, "min_pos_iou": 0.5, "match_low_quality": False}


def oracle(boxes, gts, gt_counts, ignore=None, ignore_counts=None, ignore_iof=-1.0, **thresholds):
    t = {"min_pos_iou": 0.0, "match_low_quality": True, **thresholds}
    return reference.assign_max_iou(
        boxes,
        gts,
        gt_counts,
        ignore,
        ignore_counts,
        t["pos_iou"],
        t["neg_iou"],
        t["min_pos_iou"],
        t["match_low_quality"],
        ignore_iof,
    )


def assert_equal(ours, theirs):
    assert torch.equal(ours[1].cpu(), theirs[1].cpu())
    assert torch.equal(ours[0].cpu(), theirs[0].cpu())


@pytest.mark.parametrize("case", ["rpn", "rcnn", "rpn_ignore", "rpn_empty"])
def test_reference_case(cases, case, device):
    thresholds = {
        "pos_iou": cases.number(f"assign_{case}/pos_iou_thr"),
        "neg_iou": cases.number(f"assign_{case}/neg_iou_thr"),
        "min_pos_iou": cases.number(f"assign_{case}/min_pos_iou"),
        "match_low_quality": case != "rcnn",
    }
    if case == "rpn_ignore":
        thresholds["ignore"] = cases("assign/ignore", device)
        thresholds["ignore_iof"] = cases.number("assign_rpn_ignore/ignore_iof_thr")
    gts = cases("assign/gts", device)[: 0 if case == "rpn_empty" else None]
    gt_index, max_iou = frcnn_ops.assign_max_iou(cases("assign/boxes", device), gts, **thresholds)
    assert torch.equal(gt_index, cases(f"assign_{case}/gt_inds", device))
    assert torch.equal(max_iou, cases(f"assign_{case}/max_overlaps", device))


@pytest.mark.parametrize("thresholds", [RPN, RCNN, {"pos_iou": 0.5, "neg_iou": 0.4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "gts"), [(1, 1), (255, 3), (256, 40), (257, 7), (3000, 70)])
def test_equals_oracle(n, gts, dtype, thresholds, device, random_boxes):
    boxes = random_boxes(n, 1, dtype)
    truth = random_boxes(2 * gts, 2, dtype).view(2, gts, 4)
    truth[0, 0] = boxes[-1]
    counts, regions = torch.tensor([gts, gts // 2]), random_boxes(6, 3, dtype).view(2, 3, 4)
    options = {"ignore": regions, "ignore_counts": torch.tensor([3, 1]), "ignore_iof": 0.4}
    for extra in ({}, options):
        theirs = oracle(boxes, truth, counts, **extra, **thresholds)
        on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
        ours = frcnn_ops.assign_max_iou(
            boxes.to(device), truth.to(device), gt_counts=counts.to(device), **on_device, **thresholds
        )
        assert_equal(ours, theirs)


small_box = st.tuples(*[st.integers(0, 4)] * 4).map(lambda c: [*c[:2], c[0] + c[2], c[1] + c[3]])


@given(
    boxes=st.lists(small_box, min_size=1, max_size=30),
    gts=st.lists(small_box, max_size=8),
    ignore=st.lists(small_box, max_size=2),
    thresholds=st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 3),
    low_quality=st.booleans(),
)
def test_equals_oracle_on_ties_and_empty_boxes(boxes, gts, ignore, thresholds, low_quality):
    """Coordinates on a small grid: IoUs tie all the time, and many boxes have no area."""
    boxes, gts, ignore = (
        torch.tensor(rows, dtype=torch.float32).view(-1, 4) for rows in (boxes, gts, ignore)
    )
    pos, neg, least = thresholds
    options = {"pos_iou": pos, "neg_iou": neg, "min_pos_iou": least, "match_low_quality": low_quality}
    ours = frcnn_ops.assign_max_iou(boxes, gts, ignore=ignore, ignore_iof=0.5, **options)
    counts = torch.tensor([len(gts)]), torch.tensor([len(ignore)])
    theirs = oracle(boxes, gts[None], counts[0], ignore[None], counts[1], 0.5, **options)
    assert_equal(ours, (theirs[0][0], theirs[1][0]))


def test_low_quality_matches_take_every_tie_and_the_last_gt_wins(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 10]], device=device)
    gts = torch.tensor(
        [[5.0, 0, 15, 10], [5, 0, 15, 10]], device=device
    )  # IoU 1/3 with two boxes, 1/2 with one
    gt_index, max_iou = frcnn_ops.assign_max_iou(boxes[:2], gts, 0.7, 0.4, min_pos_iou=0.3)
    assert gt_index.tolist() == [2, 2]
    torch.testing.assert_close(max_iou, torch.tensor([1 / 3, 1 / 3], device=device))
    assert frcnn_ops.assign_max_iou(boxes, gts, 0.7, 0.4, min_pos_iou=0.3)[0].tolist() == [0, 0, 2]
    assert frcnn_ops.assign_max_iou(boxes, gts, 0.7, 0.4, min_pos_iou=0.6)[0].tolist() == [0, 0, -1]
    # A plain positive keeps the first of two equal ground truths.
    assert frcnn_ops.assign_max_iou(boxes, gts, 0.5, 0.4, match_low_quality=False)[0].tolist() == [0, 0, 1]


def test_batch_equals_one_by_one(device, random_boxes):
    boxes, gts = (random_boxes(3 * n, n, device=device).view(3, n, 4) for n in (300, 9))
    counts = torch.tensor([9, 0, 4], device=device)
    batch = frcnn_ops.assign_max_iou(boxes, gts, gt_counts=counts, **RPN)
    for i, count in enumerate(counts.tolist()):
        one = frcnn_ops.assign_max_iou(boxes[i], gts[i, :count], **RPN)
        assert_equal((batch[0][i], batch[1][i]), one)


def test_hostile_coordinates(device, random_boxes):
    boxes, gts = random_boxes(600, 1, device=device), random_boxes(12, 2, device=device)
    expected = frcnn_ops.assign_max_iou(boxes, gts, **RPN)
    bad = torch.tensor(
        [[math.nan, 0, 9, 9], [0, 0, math.inf, 9], [-math.inf, -math.inf, math.inf, math.inf], [9, 9, 0, 0]],
        device=device,
    )
    gt_index, max_iou = frcnn_ops.assign_max_iou(torch.cat([boxes, bad]), torch.cat([gts, bad]), **RPN)
    assert torch.equal(gt_index[:600], expected[0]) and torch.equal(max_iou[:600], expected[1])
    assert gt_index[600:].tolist() == max_iou[600:].tolist() == [-1, 0, 0, 0]  # a NaN box takes no part


@pytest.mark.parametrize("place", range(4))
def test_a_box_with_a_nan_is_ignored_whatever_there_is_beside_it(place, device, random_boxes):
    boxes = random_boxes(5, device=device)
    boxes[2, place] = math.nan
    gts = boxes[:2].clone()
    for count, expected in ((0, [0, 0, -1, 0, 0]), (2, [1, 2, -1, 0, 0])):
        gt_index, max_iou = frcnn_ops.assign_max_iou(boxes, gts[:count], 0.9, 0.9, match_low_quality=True)
        assert gt_index.tolist() == expected and max_iou[2] == -1


def test_empty(device, random_boxes):
    none, some = torch.empty(0, 4, device=device), random_boxes(3, device=device)
    gt_index, max_iou = frcnn_ops.assign_max_iou(some, none, 0.0, 0.0)
    assert gt_index.tolist() == [0, 0, 0] and max_iou.tolist() == [0, 0, 0]
    gt_index, max_iou = frcnn_ops.assign_max_iou(none, some, **RPN)
    assert gt_index.shape == max_iou.shape == (0,)
    gt_index, _ = frcnn_ops.assign_max_iou(some, torch.empty(0, 5, 4, device=device), **RPN)
    assert gt_index.shape == (0, 3)
    gt_index, _ = frcnn_ops.assign_max_iou(some, some, ignore=none, ignore_iof=0.5, **RPN)
    assert gt_index.tolist() == [1, 2, 3]


def test_non_contiguous(device, random_boxes):
    boxes, gts = random_boxes(100, 1, device=device), random_boxes(20, 2, device=device)
    spread = frcnn_ops.assign_max_iou(boxes.T.contiguous().T[::2], gts[::4], **RPN)
    assert_equal(spread, frcnn_ops.assign_max_iou(boxes[::2].contiguous(), gts[::4].contiguous(), **RPN))


def test_thread_count_does_not_matter(threads, random_boxes):
    boxes, gts = random_boxes(5000, 1), random_boxes(50, 2)
    threads(1)
    one = frcnn_ops.assign_max_iou(boxes, gts, **RPN)
    threads(2)
    assert_equal(frcnn_ops.assign_max_iou(boxes, gts, **RPN), one)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_grows_with_boxes_plus_gts(random_boxes):
    boxes, gts = random_boxes(400_000, 1, extent=4000.0), random_boxes(300, 2, extent=4000.0)

    def peak_mb():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    before = peak_mb()
    frcnn_ops.assign_max_iou(boxes, gts, **RPN)
    assert peak_mb() - before < 60  # the matrix alone would take 458 MB


BOXES = torch.rand(3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.rand(2, 3, 4)}, r"boxes has shape \[2, 3, 4\], expected \[N, 4\], or \[B, N, 4\]"),
        ({"gts": torch.rand(3, 5)}, r"gts has shape \[1, 3, 5\], expected \[B, G, 4\]"),
        ({"gts": BOXES.double()}, "gts is Double but boxes is Float"),
        ({"boxes": BOXES.half(), "gts": BOXES.half()}, "boxes is Half, expected float32 or float64"),
        ({"pos_iou": 1.5}, r"pos_iou is 1.5, expected a number in \[0, 1\]"),
        ({"neg_iou": -0.1}, "neg_iou is -0.1"),
        ({"min_pos_iou": math.nan}, "min_pos_iou is nan"),
        ({"gt_counts": torch.tensor([4])}, "gt_counts of image 0 is 4, expected 0 to 3"),
        ({"gt_counts": torch.tensor([1, 1])}, r"gt_counts has shape \[2\]"),
        ({"gt_counts": torch.tensor([1], dtype=torch.int32)}, "gt_counts is Int, expected int64"),
        ({"ignore_counts": torch.tensor([1])}, "ignore and ignore_counts come together"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(RuntimeError, match=f"assign_max_iou: {message}"):
        frcnn_ops.assign_max_iou(**{"boxes": BOXES, "gts": BOXES, **RPN, **change})


def test_registration(device, random_boxes):
    boxes, gts = random_boxes(7, 1, device=device), random_boxes(4, 2, device=device).view(2, 2, 4)
    counts = torch.tensor([2, 1], device=device)
    op = torch.ops.frcnn_ops.assign_max_iou
    opcheck(op, (boxes, gts, counts, None, None, 0.7, 0.3, 0.3, True, -1.0))
    opcheck(op, (boxes.expand(2, 7, 4), gts, counts, gts, counts, 0.7, 0.3, 0.3, False, 0.5))


def test_compiles(device, random_boxes):
    boxes, gts = random_boxes(70, 1, device=device), random_boxes(4, 2, device=device)

    def positives(boxes, gts):
        return (frcnn_ops.assign_max_iou(boxes, gts, **RPN)[0] > 0).sum()

    assert torch.equal(
        torch.compile(positives, backend="aot_eager", fullgraph=True)(boxes, gts), positives(boxes, gts)
    )
