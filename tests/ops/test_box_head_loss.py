"""The box head's losses: known values, gradients, and who takes part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import frcnn_ops

MODES = ["l1", "iou", "giou", "diou", "ciou", "bounded_iou"]
STDS = (0.1, 0.1, 0.2, 0.2)


def arguments(device="cpu", dtype=torch.float64, agnostic=False, classes=3, slots=6):
    generator = torch.Generator().manual_seed(0)
    rows = 2 * slots
    outputs = torch.randn(rows, classes + 1 + (4 if agnostic else 4 * classes), generator=generator)
    corner = torch.rand(2, slots, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 4 + torch.rand(2, slots, 2, generator=generator) * 20], 2)
    targets = boxes + torch.randn(2, slots, 4, generator=generator)
    counts = torch.tensor([[2, 3], [4, 0]])
    labels = torch.randint(0, classes, (2, slots), generator=generator)
    labels[torch.arange(slots) >= counts[:, :1]] = classes
    rois = F.pad(boxes, (1, 0))
    tensors = [tensor.to(device) for tensor in (outputs.to(dtype), labels, rois, targets, counts)]
    return [*tensors, STDS, classes]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_made_of_the_known_losses(mode, agnostic, device):
    outputs, labels, rois, targets, counts, stds, classes = arguments(device, torch.float32, agnostic)
    found = frcnn_ops.box_head_loss(outputs, labels, rois, targets, counts, stds, classes, mode, 2.0)
    used = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9], device=device)
    positive = torch.tensor([0, 1, 6, 7, 8, 9], device=device)
    logits, label = outputs[:, : classes + 1], labels.flatten()
    torch.testing.assert_close(found[0], F.cross_entropy(logits[used], label[used]))
    right = (logits[used].argmax(1) == label[used]).float().mean() * 100
    torch.testing.assert_close(found[2], right)
    deltas = outputs[:, classes + 1 :].unflatten(1, (-1, 4))[positive]
    deltas = deltas[:, 0] if agnostic else deltas[torch.arange(6, device=device), label[positive]]
    boxes, target = rois.flatten(0, 1)[positive, 1:], targets.flatten(0, 1)[positive]
    if mode == "l1":
        expected = (deltas - frcnn_ops.encode_boxes(boxes, target, stds)).abs().sum()
    else:
        loss = getattr(frcnn_ops, f"{mode}_loss")
        expected = loss(deltas, target, boxes=boxes, stds=stds, reduction="sum")
    torch.testing.assert_close(found[1], 2.0 * expected / 9)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradient(mode, agnostic):
    outputs, *rest = arguments(agnostic=agnostic)
    # small deltas keep the decoded boxes near their targets, where the losses are smooth
    outputs = (outputs * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda outputs: frcnn_ops.box_head_loss(outputs, *rest, mode, 2.0)[:2], outputs, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reduced_outputs_are_widened_first(dtype, device):
    outputs, *rest = arguments(device, dtype)
    outputs.requires_grad_()
    wide = outputs.detach().float().requires_grad_()
    found, expected = frcnn_ops.box_head_loss(outputs, *rest), frcnn_ops.box_head_loss(wide, *rest)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    grad = torch.autograd.grad(found[0] + found[1], outputs)[0]
    other = torch.autograd.grad(expected[0] + expected[1], wide)[0]
    assert grad.dtype == dtype and torch.equal(grad, other.to(dtype))


def test_nothing_sampled(device):
    outputs, labels, rois, targets, counts, *rest = arguments(device)
    outputs.requires_grad_()
    losses = frcnn_ops.box_head_loss(outputs, labels, rois, targets, counts * 0, *rest)
    assert [loss.item() for loss in losses] == [0, 0, 0]
    assert torch.autograd.grad(losses[0] + losses[1], outputs)[0].abs().sum() == 0


def test_a_target_turned_around_has_no_gradient(device):
    """Its logarithm is NaN, and so is the loss, which training reports; |NaN| has gradient 0 in torch."""
    outputs, labels, rois, targets, *rest = arguments(device)
    outputs.requires_grad_()
    targets[0, 0] = targets[0, 0, [2, 3, 0, 1]]
    losses = frcnn_ops.box_head_loss(outputs, labels, rois, targets, *rest)
    assert losses[0].isfinite() and losses[1].isnan()
    grad = torch.autograd.grad(losses[1], outputs)[0][0].view(4, 4)[1 + labels[0, 0]]
    assert grad.isfinite().all() and (grad[:2] != 0).all() and (grad[2:] == 0).all()


def test_the_first_of_equal_logits_is_the_class(device):
    outputs, labels, rois, targets, counts, *rest = arguments(device)
    outputs = torch.zeros_like(outputs)
    accuracy = frcnn_ops.box_head_loss(outputs, labels * 0, rois, targets, counts, *rest)[2]
    assert accuracy == 100
    assert frcnn_ops.box_head_loss(outputs, labels * 0 + 1, rois, targets, counts, *rest)[2] == 0


def test_opcheck(device):
    outputs, *rest = arguments(device, torch.float32)
    opcheck(torch.ops.frcnn_ops.box_head_loss, (outputs.requires_grad_(), *rest, "giou", 1.0))


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, torch.zeros(12, 15), r"outputs has shape \[12, 15\], expected 16 numbers for each box, or 8"),
        (1, torch.zeros(2, 6), "labels is Float, expected int64"),
        (2, torch.zeros(2, 6, 4), r"rois has shape \[2, 6, 4\]"),
        (3, torch.zeros(2, 5, 4), r"targets has shape \[2, 5, 4\]"),
        (6, 0, "classes is 0"),
        (7, "l2", 'mode is "l2"'),
        (8, -1.0, "weight is -1"),
    ],
)
def test_mistakes_are_named(place, value, text):
    given = [*arguments(dtype=torch.float32), "l1", 1.0]
    given[place] = value
    with pytest.raises(RuntimeError, match=f"box_head_loss: {text}"):
        frcnn_ops.box_head_loss(*given)
