"""The gradient of a ReLU and of the bias before it, in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import frcnn_ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def made(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 64, 264])
def test_is_the_gradient_of_relu_and_bias(dtype, channels, device):
    x, grad = (made(2, channels, 19, 31, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    x, bias = x.requires_grad_(), made(1, channels, 1, 1, dtype=dtype, device=device).flatten()
    out = (x + bias[:, None, None].requires_grad_()).relu()
    (by_x,) = torch.autograd.grad(out, x, grad)
    masked, by_bias = frcnn_ops.relu_bias_gradient(grad, out.detach())
    assert torch.equal(masked, by_x) and masked.is_contiguous(memory_format=torch.channels_last)
    wide = by_x.double().sum((0, 2, 3))
    assert by_bias.dtype == dtype
    rounding = torch.finfo(dtype).eps * (1 if dtype in DTYPES[2:] else 50)
    least = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(by_bias.double(), wide, rtol=rounding, atol=least)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwrites_what_it_may(dtype, device):
    grad, out = (made(1, 24, 9, 40, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    expected = frcnn_ops.relu_bias_gradient(grad, out)
    for given in (grad.clone(), grad.contiguous()):  # the latter it cannot
        place = given.data_ptr()
        found = frcnn_ops.relu_bias_gradient(given, out, overwrite=True)
        assert all(map(torch.equal, found, expected))
        assert (found[0].data_ptr() == place) == given.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(given, grad)


def test_what_is_not_a_number_passes_as_in_torch(device):
    out = torch.tensor([float("nan"), -0.0, 0.0, 1e-30, float("inf")], device=device).view(1, 1, 1, 5)
    grad = torch.tensor([1.0, 2.0, float("nan"), 4.0, 8.0], device=device).view(1, 1, 1, 5)
    masked, by_bias = frcnn_ops.relu_bias_gradient(grad, out)
    assert torch.equal(masked, torch.ops.aten.threshold_backward(grad, out, 0))
    assert masked.flatten().tolist() == [1, 0, 0, 4, 8] and by_bias.tolist() == [13]


@pytest.mark.parametrize("shape", [(0, 8, 2, 2), (1, 0, 2, 2), (1, 8, 0, 3)])
def test_nothing_sums_to_zero(shape, device):
    masked, by_bias = frcnn_ops.relu_bias_gradient(*[torch.zeros(shape, device=device)] * 2)
    assert masked.shape == shape and torch.equal(by_bias, torch.zeros(shape[1], device=device))


def test_the_sum_does_not_depend_on_threads(threads):
    grad, out = (made(2, 33, 50, 60, seed=seed) for seed in (1, 2))
    found = []
    for count in (1, 3):
        threads(count)
        found.append(frcnn_ops.relu_bias_gradient(grad, out)[1])
    assert torch.equal(*found)


def test_other_layouts(device):
    grad, out = (made(2, 8, 5, 6, device=device, seed=seed) for seed in (1, 2))
    expected = frcnn_ops.relu_bias_gradient(grad, out)
    for a, b in [
        (grad.contiguous(), out),
        (torch.stack([grad, grad], -1)[..., 1], out.contiguous()),
        (torch.cat([grad, grad], 1)[:, 8:], torch.cat([out, out], 3)[..., :6]),
        (torch.cat([grad.new_zeros(1), grad.permute(0, 2, 3, 1).flatten()])[1:]
         .view(2, 5, 6, 8).permute(0, 3, 1, 2), out),  # not aligned to 16 bytes
    ]:  # fmt: skip
        assert all(map(torch.equal, frcnn_ops.relu_bias_gradient(a, b), expected))


@pytest.mark.parametrize(
    ("grad", "out", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), r"grad has shape \[1, 2, 3\], expected \[B, K, H, W\]"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4), r"out has shape \[1, 2, 3, 4\], expected"),
        (torch.zeros(1, 2, 3, 3).int(), torch.zeros(1, 2, 3, 3).int(), "grad is Int, expected float32"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3).half(), "out is Half but grad is Float"),
    ],
)
def test_bad_arguments(grad, out, message):
    with pytest.raises(RuntimeError, match=f"relu_bias_gradient: {message}"):
        frcnn_ops.relu_bias_gradient(grad, out)
    with pytest.raises(RuntimeError, match=f"relu_bias_gradient_: {message}"):
        torch.ops.frcnn_ops.relu_bias_gradient_(grad, out)


def test_what_is_overwritten_is_channels_last():
    grad = torch.zeros(2, 3, 4, 5)
    for given in (grad, grad[:1].expand(2, 3, 4, 5)):
        with pytest.raises(RuntimeError, match="relu_bias_gradient_: grad, which is overwritten, is not"):
            torch.ops.frcnn_ops.relu_bias_gradient_(given, grad)


def test_registration(device):
    arguments = tuple(made(1, 8, 4, 6, device=device, seed=seed) for seed in (1, 2))
    opcheck(torch.ops.frcnn_ops.relu_bias_gradient, arguments)
    opcheck(torch.ops.frcnn_ops.relu_bias_gradient_, arguments)
    compiled = torch.compile(frcnn_ops.relu_bias_gradient, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, compiled(*arguments), frcnn_ops.relu_bias_gradient(*arguments)))
