"""The RPN's losses: known values, gradients, and who takes part."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

import frcnn_ops


def arguments(device="cpu", dtype=torch.float64, images=2, sizes=((3, 4), (2, 2))):
    """Two anchors per cell; a third of the candidates sampled."""
    generator = torch.Generator().manual_seed(0)
    n = sum(2 * h * w for h, w in sizes)
    maps = [torch.randn(images, 10, *size, generator=generator).to(dtype) for size in sizes]
    corner = torch.rand(n, 2, generator=generator) * 20
    anchors = torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=generator) * 20], 1)
    corner = torch.rand(images, 3, 2, generator=generator) * 20
    gts = torch.cat([corner, corner + 4 + torch.rand(images, 3, 2, generator=generator) * 20], 2)
    gt_index = torch.randint(-1, 4, (images, n), generator=generator)
    index, counts = frcnn_ops.sample_anchors(gt_index, torch.tensor(1), n // 3, n // 6)
    return [
        [level.to(device) for level in maps],
        *(tensor.to(device) for tensor in (anchors, gts, gt_index, index, counts)),
        (1.0, 1.0, 0.5, 0.5),
    ]


def test_known_values(device):
    """One image of one cell with one anchor, and no negative, which counts as one."""
    maps = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0], device=device).view(1, 5, 1, 1)
    box = torch.tensor([[0.0, 0, 10, 10]], device=device)
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    counts = torch.tensor([[1, 0]], device=device)
    of_class, of_box = frcnn_ops.rpn_loss([maps], box, box[None] + 2, one, one * 0, counts, (1.0, 1, 1, 1))
    assert of_class.item() == pytest.approx(math.log(2) / 2)
    assert of_box.item() == pytest.approx((0.3 + 0.2) / 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient(layout):
    maps, *rest = arguments()
    maps = [level.contiguous(memory_format=layout).requires_grad_() for level in maps]
    assert torch.autograd.gradcheck(lambda *maps: frcnn_ops.rpn_loss(maps, *rest), maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reduced_maps_are_widened_first(dtype, device):
    maps, *rest = arguments(device, dtype)
    maps = [level.requires_grad_() for level in maps]
    wide = [level.detach().float().requires_grad_() for level in maps]
    losses, expected = frcnn_ops.rpn_loss(maps, *rest), frcnn_ops.rpn_loss(wide, *rest)
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert all(torch.equal(*pair) for pair in zip(losses, expected, strict=True))
    grads = torch.autograd.grad(sum(losses), maps)
    for one, other in zip(grads, torch.autograd.grad(sum(expected), wide), strict=True):
        assert one.dtype == dtype and torch.equal(one, other.to(dtype))
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_anchors_of_each_image_are_those_of_all(device):
    maps, anchors, *rest = arguments(device)
    shared = frcnn_ops.rpn_loss(maps, anchors, *rest)
    own = frcnn_ops.rpn_loss(maps, anchors.expand(2, -1, -1), *rest)
    assert all(torch.equal(*pair) for pair in zip(shared, own, strict=True))


def test_nothing_sampled(device):
    maps, anchors, gts, gt_index, index, counts, stds = arguments(device)
    of_class, of_box = frcnn_ops.rpn_loss(maps, anchors, gts, gt_index, index, counts * 0, stds)
    assert of_class == 0 and of_box == 0


def test_opcheck(device):
    maps, *rest = arguments(device, torch.float32)
    opcheck(torch.ops.frcnn_ops.rpn_loss, ([level.requires_grad_() for level in maps], *rest))


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, [], "maps is empty"),
        (0, [torch.zeros(2, 9, 1, 1)], "maps have 9 channels"),
        (0, [torch.zeros(2, 10, 1, 1)], "maps have 2 anchors"),
        (1, torch.zeros(32, 4).double(), "anchors is Double, expected float32"),
        (4, torch.zeros(3, 9, dtype=torch.long), r"index has shape \[3, 9\]"),
        (5, torch.zeros(2, 3, dtype=torch.long), r"counts has shape \[2, 3\]"),
        (6, (1.0, 1.0, 1.0), "stds has 3 numbers"),
    ],
)
def test_mistakes_are_named(place, value, text):
    given = arguments(dtype=torch.float32)
    given[place] = value
    with pytest.raises(RuntimeError, match=f"rpn_loss: {text}"):
        frcnn_ops.rpn_loss(*given)
