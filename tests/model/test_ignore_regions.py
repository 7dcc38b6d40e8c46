"""Regions to ignore: what lies in them is neither an object nor background, in the RPN and the box head."""

from dataclasses import replace

import pytest
import torch
from confident_detector import DATA, SMALL, confident

import frcnn_ops
from frcnn.structures import Batch

OBJECT, CROWD = [8.0, 8, 40, 40], [50.0, 0, 128, 96]


@pytest.fixture
def sampled(monkeypatch):
    """Of both heads: the boxes, and what each was assigned to."""
    found = {}
    assign = frcnn_ops.assign_max_iou

    def noted(boxes, gts, *arguments, **named):
        gt_index, iou = assign(boxes, gts, *arguments, **named)
        found["roi" if named.get("match_low_quality") is False else "rpn"] = boxes, gt_index
        return gt_index, iou

    monkeypatch.setattr(frcnn_ops, "assign_max_iou", noted)
    return found


def batch(*boxes, labels):
    pixels = torch.randint(0, 256, (1, 96, 128, 3), generator=torch.Generator().manual_seed(0)).byte()
    return Batch(pixels, ((96, 128),), (torch.tensor(boxes).view(-1, 4),), (torch.tensor(labels),))


def inside(boxes):
    """Whether more than half of each box lies in the crowd region."""
    crowd = torch.tensor(CROWD)
    sides = (torch.minimum(boxes[:, 2:], crowd[2:]) - torch.maximum(boxes[:, :2], crowd[:2])).clamp(min=0)
    return sides.prod(1) > 0.5 * (boxes[:, 2:] - boxes[:, :2]).prod(1)


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_what_lies_in_a_region_is_not_background(sampled, stage):
    one = batch(OBJECT, CROWD, labels=[1, -1])
    with torch.no_grad():
        torch.manual_seed(0)
        confident(replace(SMALL, ignore_iof=0.5), DATA).losses(one)
    boxes, gt_index = (part[0] for part in sampled[stage])
    covered = inside(boxes)
    assert covered.any() and not covered.all()
    assert (gt_index[covered] == -1).all()
    assert (gt_index[~covered] >= 0).any() and (gt_index <= 1).all()  # the crowd region is no object


def test_a_model_that_does_not_look_at_them_refuses_them():
    with pytest.raises(ValueError, match="labels from -1 to 1, but the model knows classes 0 to 2"):
        confident(SMALL, DATA).losses(batch(OBJECT, CROWD, labels=[1, -1]))


def test_without_a_region_nothing_changes():
    results = []
    for ignore_iof in (0.0, 0.5):
        torch.manual_seed(0)
        losses, _ = confident(replace(SMALL, ignore_iof=ignore_iof), DATA).losses(batch(OBJECT, labels=[1]))
        results.append(torch.stack([*losses.values()]))
    assert torch.equal(*results)


def test_an_image_that_has_nothing_but_a_region_teaches_what_is_outside():
    losses, _ = confident(replace(SMALL, ignore_iof=0.5), DATA).losses(batch(CROWD, labels=[-1]))
    assert losses["loss_rpn_cls"] > 0 and losses["loss_rpn_bbox"] == 0 and losses["loss_bbox"] == 0
    everything = [0.0, 0, 128, 96]
    losses, _ = confident(replace(SMALL, ignore_iof=0.01), DATA).losses(batch(everything, labels=[-1]))
    assert all(loss.isfinite() for loss in losses.values())
