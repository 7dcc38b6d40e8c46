"""Bias, sum and ReLU in one pass, rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import frcnn_ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def made(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [16, 5])
def test_rounds_once(dtype, relu, channels, device):
    x, add = (made(2, channels, 9, 13, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    bias = made(channels, dtype=dtype, device=device)
    for other in (None, add):
        wanted = x.float() + bias.float()[:, None, None] + (0 if other is None else other.float())
        wanted = (wanted.relu() if relu else wanted).to(dtype)
        found = frcnn_ops.conv_epilogue(x, bias, other, relu)
        assert torch.equal(found, wanted) and found.is_contiguous(memory_format=torch.channels_last)


def test_the_nearest_cell_is_torchs(device):
    """Every size up to 40 from every smaller one, along both axes at once."""
    zero = torch.zeros(1, device=device)
    for size in (1, 2, 3, 7, 25, 26, 40):
        for small in range(1, size + 1):
            add = torch.arange(small * (size - small + 1.0), device=device).view(1, 1, small, -1)
            found = frcnn_ops.conv_epilogue(torch.zeros(1, 1, size, size, device=device), zero, add)
            assert torch.equal(found, F.interpolate(add, (size, size), mode="nearest")), (size, small)


def test_a_nan_stays_a_nan(device):
    x = torch.full((1, 8, 2, 2), float("nan"), device=device)
    assert frcnn_ops.conv_epilogue(x, torch.zeros(8, device=device), relu=True).isnan().all()


def test_other_layouts(device):
    x, add = (made(2, 8, 5, 6, device=device, seed=seed) for seed in (1, 2))
    bias = made(8, device=device)
    wanted = frcnn_ops.conv_epilogue(x, bias, add, True)
    for a, b, c in [
        (x.contiguous(), bias, add.contiguous()),
        (torch.stack([x, x], -1)[..., 1], torch.stack([bias, bias], -1)[:, 0], add),
        (torch.cat([x, x], 1)[:, 8:], bias, torch.cat([add, add], 3)[..., :6]),
        (x, torch.cat([bias[:1], bias])[1:], add),  # not aligned to 16 bytes
    ]:
        assert torch.equal(frcnn_ops.conv_epilogue(a, b, c, True), wanted)


@pytest.mark.parametrize(
    ("x", "bias", "add", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(2), None, r"x has shape \[1, 2, 3\], expected \[B, K, H, W\]"),
        (torch.zeros(1, 2, 3, 3).double(), torch.zeros(2), None, "x is Double, expected float32"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(3), None, r"bias has shape \[3\], expected \[K\]"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(2).half(), None, "bias is Half but x is Float"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(2), torch.zeros(1, 3, 3, 3), r"add has shape \[1, 3, 3, 3\]"),
        (
            torch.zeros(1, 2, 3, 3),
            torch.zeros(2),
            torch.zeros(1, 2, 0, 3),
            r"add has shape .* which has no cell",
        ),
    ],
)
def test_bad_arguments(x, bias, add, message):
    with pytest.raises(RuntimeError, match=f"conv_epilogue: {message}"):
        frcnn_ops.conv_epilogue(x, bias, add)


def test_registration(device):
    arguments = made(1, 8, 4, 6, device=device), made(8, device=device), made(1, 8, 2, 3, device=device), True
    opcheck(torch.ops.frcnn_ops.conv_epilogue, arguments)
    compiled = torch.compile(frcnn_ops.conv_epilogue, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), frcnn_ops.conv_epilogue(*arguments))
