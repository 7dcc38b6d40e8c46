import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

RCNN_STDS = (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize("group", ["coder_rpn", "coder_rcnn"])
def test_reference_case(cases, group, device):
    stds = cases.numbers(f"{group}/stds")
    source = cases(f"{group}/src", device)
    encoded = frcnn_ops.encode_boxes(source, cases(f"{group}/dst", device), stds)
    torch.testing.assert_close(encoded, cases(f"{group}/encoded", device), rtol=1e-5, atol=1e-5)
    deltas = cases(f"{group}/deltas", device)
    for name, max_shape in (("decoded", (480, 640)), ("decoded_unclipped", None)):
        decoded = frcnn_ops.decode_boxes(source, deltas, stds, max_shape)
        torch.testing.assert_close(decoded, cases(f"{group}/{name}", device), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("stds", [(1, 1, 1, 1), RCNN_STDS])
def test_decode_inverts_encode(stds, device, random_boxes):
    boxes, targets = (random_boxes(100, seed, torch.float64, device) for seed in (1, 2))
    deltas = frcnn_ops.encode_boxes(boxes, targets, stds)
    limit = math.log(1000 / 16)
    assert (deltas[:, 2:] * torch.tensor(stds[2:], device=device)).abs().max() < limit
    torch.testing.assert_close(frcnn_ops.decode_boxes(boxes, deltas, stds), targets)


@pytest.mark.parametrize("max_shape", [None, (50, 70)])
@pytest.mark.parametrize("classes", [1, 5])
def test_decode_equals_oracle(classes, max_shape, device, random_boxes):
    boxes = random_boxes(130, 3, torch.float64, device)
    deltas = torch.randn(130, 4 * classes, dtype=torch.float64, device=device) * 3
    ours = frcnn_ops.decode_boxes(boxes, deltas, RCNN_STDS, max_shape)
    torch.testing.assert_close(ours, reference.decode_boxes(boxes, deltas, RCNN_STDS, max_shape))


def test_size_change_is_clamped(device):
    box = torch.tensor([[0.0, 0, 16, 16]], device=device)
    grown = frcnn_ops.decode_boxes(box, torch.tensor([[0.0, 0, 99, -99]], device=device))
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0, device=device))
    torch.testing.assert_close(grown[0, 3] - grown[0, 1], torch.tensor(16 * 16 / 1000, device=device))


@pytest.mark.parametrize("max_shape", [None, (90, 110)])
def test_gradient(max_shape, device, random_boxes):
    boxes = random_boxes(6, 4, torch.float64, device)
    deltas = torch.randn(6, 8, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda d: frcnn_ops.decode_boxes(boxes, d, RCNN_STDS, max_shape), (deltas,)
    )
    # Also where the clamp of the size and the clipping to the image bite.
    wild = (deltas.detach() * 30).requires_grad_()
    weight = torch.rand_like(wild)
    ours = torch.autograd.grad(
        (frcnn_ops.decode_boxes(boxes, wild, RCNN_STDS, max_shape) * weight).sum(), wild
    )
    theirs = torch.autograd.grad(
        (reference.decode_boxes(boxes, wild, RCNN_STDS, max_shape) * weight).sum(), wild
    )
    torch.testing.assert_close(ours, theirs)


@given(st.lists(st.floats(width=32), min_size=8, max_size=8))
def test_hostile_numbers_stay_in_the_image_or_nan(numbers):
    box, delta = torch.tensor(numbers[:4])[None], torch.tensor(numbers[4:])[None]
    decoded = frcnn_ops.decode_boxes(box, delta, max_shape=(48, 64))
    limits = torch.tensor([64.0, 48, 64, 48])
    assert torch.all(decoded.isnan() | ((decoded >= 0) & (decoded <= limits)))
    if torch.cat([box, delta]).isfinite().all() and torch.cat([box, delta]).abs().max() < 1e15:
        assert decoded.isfinite().all()


def test_empty(device):
    none = torch.empty(0, 4, device=device)
    assert frcnn_ops.encode_boxes(none, none).shape == (0, 4)
    deltas = torch.empty(0, 12, device=device, requires_grad=True)
    decoded = frcnn_ops.decode_boxes(none, deltas)
    decoded.sum().backward()
    assert decoded.shape == (0, 12) and deltas.grad.shape == (0, 12)
    assert frcnn_ops.decode_boxes(
        torch.rand(3, 4, device=device), torch.empty(3, 0, device=device)
    ).shape == (3, 0)


def test_non_contiguous(device, random_boxes):
    boxes, targets = random_boxes(20, 5, device=device), random_boxes(20, 6, device=device)
    by_column = targets.T.contiguous().T
    assert torch.equal(frcnn_ops.encode_boxes(boxes, by_column), frcnn_ops.encode_boxes(boxes, targets))
    deltas = torch.randn(40, 8, device=device)[::2, ::2]
    expected = frcnn_ops.decode_boxes(boxes, deltas.contiguous())
    assert torch.equal(frcnn_ops.decode_boxes(boxes, deltas), expected)


BOXES, DELTAS = torch.rand(3, 4), torch.rand(3, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frcnn_ops.encode_boxes(BOXES, BOXES[:2]), r"targets has shape \[2, 4\], expected \[N, 4\]"),
        (lambda: frcnn_ops.encode_boxes(BOXES, BOXES.double()), "targets is Double but boxes is Float"),
        (lambda: frcnn_ops.encode_boxes(BOXES, BOXES, (1, 1)), "stds has 2 numbers, expected 4"),
        (lambda: frcnn_ops.encode_boxes(BOXES, BOXES, (1, 0, 1, 1)), "stds hold 0, expected positive"),
        (lambda: frcnn_ops.decode_boxes(BOXES, DELTAS[:2]), r"deltas has shape \[2, 8\]"),
        (lambda: frcnn_ops.decode_boxes(BOXES, DELTAS[:, :7]), "expected .* a multiple of 4 columns"),
        (lambda: frcnn_ops.decode_boxes(BOXES, DELTAS.half()), "deltas is Half but boxes is Float"),
        (lambda: frcnn_ops.decode_boxes(BOXES, DELTAS, max_shape=(3,)), r"expected \(height, width\)"),
        (lambda: frcnn_ops.decode_boxes(BOXES, DELTAS, max_shape=(3, -1)), r"max_shape is \[3, -1\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_registration(device, random_boxes):
    boxes, targets = random_boxes(5, 7, device=device), random_boxes(5, 8, device=device)
    deltas = torch.randn(5, 8, device=device, requires_grad=True)
    opcheck(torch.ops.frcnn_ops.encode_boxes, (boxes, targets, [1.0] * 4))
    opcheck(torch.ops.frcnn_ops.decode_boxes, (boxes, deltas, [1.0] * 4, None))
    opcheck(torch.ops.frcnn_ops.decode_boxes, (boxes, deltas, [1.0] * 4, [30, 40]))
    grad = torch.rand(5, 8, device=device)
    opcheck(torch.ops.frcnn_ops.decode_boxes_backward, (grad, boxes, deltas.detach(), [1.0] * 4, None))


def test_compiles(device, random_boxes):
    boxes = random_boxes(5, 9, device=device)
    deltas = torch.randn(5, 4, device=device, requires_grad=True)

    def loss(deltas):
        return frcnn_ops.decode_boxes(boxes, deltas, RCNN_STDS, (40, 50)).square().sum()

    ours = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(deltas), deltas)
    torch.testing.assert_close(ours, torch.autograd.grad(loss(deltas), deltas))
