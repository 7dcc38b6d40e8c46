import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import frcnn_ops
from frcnn_ops import reference

MODES = ["log", "linear", "square", "giou", "diou", "ciou", "bounded"]
STDS = (0.1, 0.1, 0.2, 0.2)


def loss_of(mode, pred, target, **options):
    if mode in ("log", "linear", "square"):
        return frcnn_ops.iou_loss(pred, target, mode, **options)
    name = "bounded_iou_loss" if mode == "bounded" else f"{mode}_loss"
    return getattr(frcnn_ops, name)(pred, target, **options)


def oracle(mode, pred, target, reduction="none", weight=None, boxes=None, stds=STDS):
    eps, beta = (1e-3, 0.2) if mode == "bounded" else (1e-6, 0.0)
    return reference.iou_loss(pred, target, weight, boxes, stds, mode, eps, beta, reduction)


def value_and_grad(loss, pred, mode, *args, **options):
    pred = pred.detach().requires_grad_()
    value = loss(mode, pred, *args, **options)
    # A different factor for every element, so that no gradient hides behind another.
    factors = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)
    return value.detach(), torch.autograd.grad((value * factors).sum(), pred)[0]


def pairs(random_boxes, n=64, dtype=torch.float64, device="cpu"):
    """Targets, and predictions near them, far from them, and equal to them."""
    target = random_boxes(n, 1, torch.float64)
    pred = target + torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4
    pred[: n // 4] = random_boxes(n // 4, 3, torch.float64)
    pred[-3:] = target[-3:]
    return pred.to(device, dtype), target.to(device, dtype)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("log", "iou_log"),
        ("linear", "iou_linear"),
        ("square", "iou_square"),
        ("giou", "giou"),
        ("diou", "diou"),
        ("ciou", "ciou"),
        ("bounded", "bounded_iou"),
    ],
)
def test_reference_case(cases, mode, name, device):
    pred, target = cases("losses/pred", device).requires_grad_(), cases("losses/target", device)
    value = loss_of(mode, pred, target)
    value.sum().backward()
    expected, expected_grad = cases(f"losses_{name}/value", device), cases(f"losses_{name}/grad", device)
    # Where the reference is NaN (its CIoU of identical boxes), ours has to be a number.
    assert value.isfinite().all() and pred.grad.isfinite().all()
    defined = expected.isfinite()
    assert defined.float().mean() > 0.7
    torch.testing.assert_close(value[defined], expected[defined], rtol=1e-6, atol=1e-6)
    defined = expected_grad.isfinite()
    torch.testing.assert_close(pred.grad[defined], expected_grad[defined], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_oracle(mode, reduction, dtype, device, random_boxes):
    pred, target = pairs(random_boxes, dtype=dtype, device=device)
    weight = torch.linspace(0, 3, len(pred), dtype=dtype, device=device)
    for options in ({}, {"weight": weight}):
        ours = value_and_grad(loss_of, pred, mode, target, reduction=reduction, **options)
        theirs = value_and_grad(oracle, pred, mode, target, reduction=reduction, **options)
        torch.testing.assert_close(ours, theirs, rtol=2e-5 if dtype == torch.float32 else 1e-9, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_fused_decoding_equals_oracle(mode, device, random_boxes):
    boxes, target = random_boxes(50, 4, torch.float64, device), random_boxes(50, 5, torch.float64, device)
    noise = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).to(device)
    deltas = frcnn_ops.encode_boxes(boxes, target, STDS) + noise
    deltas[:5] *= 40  # beyond the clamp of the size
    options = {"boxes": boxes, "stds": STDS, "weight": torch.rand(50, dtype=torch.float64, device=device)}
    ours = value_and_grad(loss_of, deltas, mode, target, **options)
    theirs = value_and_grad(oracle, deltas, mode, target, **options)
    torch.testing.assert_close(ours, theirs)
    apart = loss_of(mode, frcnn_ops.decode_boxes(boxes, deltas, STDS), target, weight=options["weight"])
    torch.testing.assert_close(ours[0], apart)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "ciou"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(mode, reduction, device, random_boxes):
    pred, target = (rows[20:30] for rows in pairs(random_boxes, device=device))
    pred = pred.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss_of(mode, p, target, reduction=reduction), (pred,))
    deltas = torch.randn(10, 4, dtype=torch.float64, device=device).mul(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: loss_of(mode, d, target, boxes=target, stds=STDS), (deltas,))


def test_gradcheck_ciou_where_alpha_is_off(device):
    # alpha is a constant for the gradient, so finite differences agree only where it is 0: IoU <= 0.5.
    target = torch.tensor([[0.0, 0, 10, 10], [3, 1, 9, 30]], dtype=torch.float64, device=device)
    pred = (target + torch.tensor([5.0, 4, 5, 4], device=device)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: frcnn_ops.ciou_loss(p, target), (pred,))


def test_known_values(device):
    pred = torch.tensor([[0.0, 0, 10, 10]], device=device)
    target = torch.tensor([[5.0, 0, 15, 10]], device=device)  # IoU 1/3, hull 15 x 10, centers 5 apart
    for mode, expected in [
        ("log", math.log(3)),
        ("linear", 2 / 3),
        ("square", 8 / 9),
        ("giou", 2 / 3),
        ("diou", 2 / 3 + 25 / 325),
        ("ciou", 2 / 3 + 25 / 325),
    ]:
        assert loss_of(mode, pred, target).item() == pytest.approx(expected, rel=1e-5), mode
    bounded = loss_of("bounded", pred, target)  # dx: |5| * 2 / (10 + 10) away; the rest fits
    assert bounded[0, 0].item() == pytest.approx(1 - 0.1, rel=1e-3)
    assert bounded[0, 1:].abs().max() < 1e-6


coordinate = st.one_of(
    st.integers(-2, 6).map(float),
    st.sampled_from([1e-6, -1e-6, 1e-20, 0.1, 1e5, 1e10, -1e10, 1e20, -1e20, 3.4e38, -3.4e38]),
)
box = st.lists(coordinate, min_size=4, max_size=4)


@pytest.mark.parametrize("mode", MODES)
@given(rows=st.lists(st.tuples(box, box), min_size=1, max_size=20))
def test_finite_boxes_give_finite_losses_and_gradients(mode, rows):
    pred, target = (torch.tensor(side) for side in zip(*rows, strict=True))
    for a, b in ((pred, target), (pred, pred)):
        value, grad = value_and_grad(loss_of, a, mode, b)
        assert value.isfinite().all() and grad.isfinite().all()
        if mode in ("linear", "square", "bounded"):
            assert ((value >= 0) & (value <= 1)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_prediction_is_not_hidden(mode, bad):
    target = torch.tensor([[0.0, 0, 10, 10]] * 5)
    pred = target.clone()
    for column in range(4):
        pred[column, column] = bad
    value = loss_of(mode, pred, target)
    assert value[:4].isnan().all() and value[4].isfinite().all()
    assert loss_of(mode, pred, target, reduction="sum").isnan()


@pytest.mark.parametrize("mode", MODES)
def test_empty(mode, device):
    none = torch.empty(0, 4, device=device, requires_grad=True)
    target = torch.empty(0, 4, device=device)
    assert loss_of(mode, none, target).shape == ((0, 4) if mode == "bounded" else (0,))
    for reduction in ("sum", "mean"):
        loss = loss_of(mode, none, target, reduction=reduction)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, none)[0].shape == (0, 4)


@pytest.mark.parametrize("mode", MODES)
def test_non_contiguous(mode, device, random_boxes):
    pred, target = pairs(random_boxes, 40, device=device)
    weight = torch.rand(40, 3, dtype=torch.float64, device=device)
    spread = value_and_grad(loss_of, pred[::2], mode, target.T.contiguous().T[::2], weight=weight[::2, 1])
    packed = [rows[::2].contiguous() for rows in (pred, target)]
    expected = value_and_grad(loss_of, packed[0], mode, packed[1], weight=weight[::2, 1].contiguous())
    assert all(torch.equal(a, b) for a, b in zip(spread, expected, strict=True))


def test_sums_do_not_depend_on_thread_count(threads, random_boxes):
    pred, target = pairs(random_boxes, 30011, torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append([value_and_grad(loss_of, pred, mode, target, reduction="sum") for mode in MODES])
    for other in results[1:]:
        for (value, grad), (value_, grad_) in zip(results[0], other, strict=True):
            assert torch.equal(value, value_) and torch.equal(grad, grad_)


PRED = torch.rand(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frcnn_ops.giou_loss(PRED, PRED[:2]), r"target has shape \[2, 4\], expected \[N, 4\]"),
        (lambda: frcnn_ops.giou_loss(PRED[:, :3], PRED), r"pred has shape \[3, 3\]"),
        (lambda: frcnn_ops.giou_loss(PRED.half(), PRED), "pred is Half, expected float32 or float64"),
        (lambda: frcnn_ops.giou_loss(PRED, PRED.double()), "target is Double but pred is Float"),
        (lambda: frcnn_ops.giou_loss(PRED, PRED, weight=PRED), r"weight has shape \[3, 4\], expected \[N\]"),
        (lambda: frcnn_ops.giou_loss(PRED, PRED, boxes=PRED[:1]), r"boxes has shape \[1, 4\]"),
        (lambda: frcnn_ops.giou_loss(PRED, PRED, boxes=PRED, stds=(1,)), "stds has 1 numbers"),
        (lambda: frcnn_ops.giou_loss(PRED, PRED, eps=-1), "eps is -1, expected a positive number"),
        (lambda: frcnn_ops.bounded_iou_loss(PRED, PRED, beta=0), "beta is 0, expected a positive number"),
        (
            lambda: frcnn_ops.giou_loss(PRED, PRED, reduction="max"),
            'reduction is "max", expected none, sum or',
        ),
        (
            lambda: torch.ops.frcnn_ops.iou_loss(PRED, PRED, None, None, [1.0] * 4, "l2", 1e-6, 0.0, "sum"),
            'mode is "l2", expected log, linear',
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(RuntimeError, match=f"iou_loss: {message}"):
        call()


def test_iou_loss_refuses_other_losses():
    with pytest.raises(ValueError, match="not 'giou'"):
        frcnn_ops.iou_loss(PRED, PRED, "giou")


@pytest.mark.parametrize("mode", ["log", "bounded"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_registration(mode, reduction, device, random_boxes):
    pred, target = pairs(random_boxes, 8, torch.float32, device)
    settings = [list(STDS), mode, 1e-3, 0.2, reduction]
    weight = torch.rand(8, device=device)
    inputs = pred.requires_grad_(), target, weight, target, *settings
    opcheck(torch.ops.frcnn_ops.iou_loss, inputs)
    grad = torch.rand_like(torch.ops.frcnn_ops.iou_loss(*inputs))
    opcheck(torch.ops.frcnn_ops.iou_loss_backward, (grad, pred.detach(), target, None, None, *settings))


def test_compiles(device, random_boxes):
    pred, target = pairs(random_boxes, 8, torch.float32, device)

    def loss(pred):
        return frcnn_ops.giou_loss(pred * 1.5, target, reduction="mean") * 10

    ours = torch.autograd.grad(
        torch.compile(loss, backend="aot_eager", fullgraph=True)(pred.requires_grad_()), pred
    )
    torch.testing.assert_close(ours, torch.autograd.grad(loss(pred), pred))
