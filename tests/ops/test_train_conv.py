import pytest
import torch
import torch.nn.functional as F

import frcnn_ops

CASES = [  # batch, channels, filters, height, width, kernel, stride
    (2, 32, 64, 9, 14, 3, 1),
    (1, 64, 32, 1, 1, 3, 1),
    (3, 32, 32, 20, 5, 3, 1),
    (2, 24, 15, 9, 14, 1, 1),
    (2, 16, 40, 9, 14, 1, 2),
    (1, 16, 8, 6, 7, 1, 2),
]


def sample(batch, channels, filters, height, width, kernel, stride, seed=0):
    if kernel == 3 and not frcnn_ops.winograd_available():
        pytest.skip("needs AVX2, AVX-512 or NEON")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(filters, channels, kernel, kernel, generator=generator) / (kernel * channels**0.5)
    bias = torch.randn(filters, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def results(conv, x, weight, bias, stride):
    """The output and the gradients of a sum that weighs its elements unequally."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
    out = conv(*leaves, stride)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, *torch.autograd.grad((out * weights).sum(), [leaf for leaf in leaves if leaf is not None])


def exact(x, weight, bias, stride):
    def conv(*arguments):
        return F.conv2d(*arguments, padding=weight.shape[2] // 2)

    return results(conv, x.double(), weight.double(), None if bias is None else bias.double(), stride)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, layout, with_bias):
    x, weight, bias = sample(*case)
    x, bias = x.contiguous(memory_format=layout), bias if with_bias else None
    found = results(frcnn_ops.train_conv, x, weight, bias, case[-1])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(found, exact(x, weight, bias, case[-1]), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 8e-6 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("case", CASES[::3])
def test_only_what_is_asked_for(case):
    x, weight, bias = sample(*case)
    out = frcnn_ops.train_conv(x, weight.requires_grad_(), bias, case[-1])
    out.sum().backward()
    assert weight.grad is not None and x.grad is None
    assert not frcnn_ops.train_conv(x, weight.detach(), bias, case[-1]).requires_grad


@pytest.mark.parametrize("case", CASES[::3])
def test_a_step_repeats_to_the_bit(case):
    arguments = sample(*case)
    for first, second in zip(
        results(frcnn_ops.train_conv, *arguments, case[-1]),
        results(frcnn_ops.train_conv, *arguments, case[-1]),
        strict=True,
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("case", CASES)
def test_no_images(case):
    x, weight, bias = sample(*case)
    for found, expected in zip(
        results(frcnn_ops.train_conv, x[:0], weight, bias, case[-1]),
        exact(x[:0], weight, bias, case[-1]),
        strict=True,
    ):
        assert found.shape == expected.shape and not found.any()


@pytest.mark.parametrize("case", CASES[::3])
def test_op(case):
    x, weight, bias = sample(*case)
    arguments = x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), case[-1]
    torch.library.opcheck(torch.ops.frcnn.train_conv.default, arguments)


def test_what_fits():
    def fits(*shape, stride=1, padding=None, groups=1, cells=2048, dtype=torch.float32):
        x, weight = (
            torch.empty(2, shape[1] * groups, cells // 64, 32, dtype=dtype),
            torch.empty(shape, dtype=dtype),
        )
        padding = shape[2] // 2 if padding is None else padding
        return frcnn_ops.train_conv_fits(x, weight, stride, padding, groups)

    assert fits(15, 24, 1, 1) and fits(15, 24, 1, 1, stride=2, cells=64)
    assert fits(64, 32, 3, 3) == frcnn_ops.winograd_available()
    assert not fits(64, 32, 3, 3, cells=1984)  # too few to be worth it
    assert not fits(64, 32, 3, 3, stride=2) and not fits(64, 32, 3, 3, padding=0) and not fits(64, 16, 3, 3)
    assert not fits(64, 3, 7, 7) and not fits(32, 32, 3, 3, groups=2) and not fits(8, 8, 1, 1, padding=1)
    assert not fits(8, 8, 1, 1, dtype=torch.float64) and not fits(8, 8, 1, 1, dtype=torch.bfloat16)
