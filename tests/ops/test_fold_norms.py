"""Norms folded into convolutions: what a convolution and a norm compute, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import frcnn_ops


def layers(device="cpu", dtype=torch.float64, shapes=((3, 2, 3, 3), (5, 4, 1, 1), (2, 7))):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    vectors = [
        [torch.rand(shape[0], generator=generator, dtype=dtype) + 0.1 for shape in shapes] for _ in range(4)
    ]
    return [[tensor.to(device) for tensor in tensors] for tensors in (weights, *vectors)]


def test_it_is_the_convolution_and_the_norm(device):
    weights, gains, shifts, means, variances = layers(device, shapes=((6, 4, 3, 3),))
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64, device=device)
    (weight,), (bias,) = frcnn_ops.fold_norms(weights, gains, shifts, means, variances, 1e-3, torch.float64)
    expected = F.batch_norm(F.conv2d(x, weights[0]), means[0], variances[0], gains[0], shifts[0], eps=1e-3)
    torch.testing.assert_close(F.conv2d(x, weight, bias), expected)


def test_gradient():
    weights, gains, shifts, means, variances = layers()
    learned = [tensor.requires_grad_() for tensors in (weights, gains, shifts) for tensor in tensors]

    def folded(*learned):
        weights, gains, shifts = learned[:3], learned[3:6], learned[6:]
        both = frcnn_ops.fold_norms(weights, gains, shifts, means, variances, 1e-5, torch.float64)
        return tuple(both[0] + both[1])

    assert torch.autograd.gradcheck(folded, learned)


def test_gradient_of_some_of_the_results_and_without_that_of_the_norms(device):
    """Means and variances have none; gains and shifts need none, as in a caffe-style network."""
    weights, *norms = layers(device)
    weights[1].requires_grad_()
    _, biases = frcnn_ops.fold_norms(weights, *norms, 1e-5, torch.float64)
    assert torch.autograd.grad(biases[0].sum() + biases[1].sum(), weights[1])[0].abs().sum() == 0
    folded, _ = frcnn_ops.fold_norms(weights, *norms, 1e-5, torch.float64)
    gain, variance = norms[0][1], norms[3][1]
    expected = (gain / (variance + 1e-5).sqrt())[:, None, None, None].expand_as(weights[1])
    torch.testing.assert_close(torch.autograd.grad(folded[1].sum(), weights[1])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_rounded_is_rounded_once(dtype, device):
    weights, *norms = layers(device, torch.float32)
    wide = frcnn_ops.fold_norms(weights, *norms)
    narrow = frcnn_ops.fold_norms(weights, *norms, dtype=dtype)
    for one, other in zip(wide[0] + wide[1], narrow[0] + narrow[1], strict=True):
        assert torch.equal(one.to(dtype), other)


def test_every_float_is_rounded_to_half_as_torch_does():
    """Of all exponents, both signs, ties and their neighbors."""
    bits = torch.arange(0, 2**32, 4099 * 7, dtype=torch.int64)
    near = torch.cat([bits | low for low in (0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)])
    values = near.to(torch.int32).view(torch.float32)
    values = values[values.isfinite()][None]
    one, zero = torch.ones(1), torch.zeros(1)
    for dtype in (torch.float16, torch.bfloat16):
        (found,), _ = frcnn_ops.fold_norms([values], [one], [zero], [zero], [one], 1e-30, dtype)
        assert torch.equal(found, values.to(dtype)), dtype


def test_layout_is_kept(device):
    weights, *norms = layers(device, torch.float32)
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    folded, _ = frcnn_ops.fold_norms(weights, *norms)
    assert folded[0].stride() == weights[0].stride()
    grad = torch.randn(folded[0].shape, device=device)
    by_weight = torch.autograd.grad(folded[0], weights[0], grad, retain_graph=True)[0]
    assert by_weight.stride() == weights[0].stride()
    other = torch.autograd.grad(folded[0], weights[0], grad.contiguous(memory_format=torch.channels_last))[0]
    assert torch.equal(by_weight, other)


def test_opcheck(device):
    opcheck(torch.ops.frcnn_ops.fold_norms, (*layers(device, torch.float32), 1e-5, torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lists: lists[1].pop(), "there are 2 gains and 3 weights"),
        (lambda lists: lists[4].__setitem__(0, torch.ones(9)), r"variances has shape \[9\]"),
        (lambda lists: lists[0].__setitem__(1, lists[0][1].half()), "weights is Half but weights is Float"),
        (lambda lists: lists[0].clear(), "weights is empty"),
    ],
)
def test_mistakes_are_named(change, text):
    lists = layers(dtype=torch.float32)
    change(lists)
    with pytest.raises(RuntimeError, match=f"fold_norms: .*{text}"):
        frcnn_ops.fold_norms(*lists)


def test_other_mistakes_are_named():
    lists = layers(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="eps is 0"):
        frcnn_ops.fold_norms(*lists, eps=0.0)
    with pytest.raises(RuntimeError, match="dtype is Double"):
        frcnn_ops.fold_norms(*lists, dtype=torch.float64)
