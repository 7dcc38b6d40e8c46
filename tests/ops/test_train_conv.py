import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import frcnn_ops

ROOT = Path(__file__).resolve().parents[2]
needs_winograd = pytest.mark.skipif(not frcnn_ops.winograd_available(), reason="needs AVX2, AVX-512 or NEON")
CASES = [  # batch, channels, filters, height, width, size, stride
    (2, 32, 64, 33, 49, 3, 1),  # by Winograd's algorithm, where there is one
    (1, 96, 32, 32, 32, 3, 1),
    (2, 64, 160, 50, 60, 3, 1),  # several passes over the sums
    (1, 64, 32, 1, 1, 3, 1),
    (2, 24, 15, 9, 14, 3, 1),
    (2, 32, 64, 33, 49, 3, 2),
    (3, 8, 5, 6, 8, 3, 2),
    (1, 4, 3, 5, 8, 3, 3),
    (2, 24, 15, 9, 14, 1, 1),
]


def sample(batch, channels, filters, height, width, size, stride):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(filters, channels, size, size, generator=generator) / (size * channels**0.5)
    bias = torch.randn(filters, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), weight, bias, stride


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
    x, weight, bias, stride = sample(*case)
    x, bias = x.contiguous(memory_format=layout), bias if with_bias else None
    found = results(frcnn_ops.train_conv, x, weight, bias, stride)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(found, exact(x, weight, bias, stride), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 8e-6 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[5], CASES[8]])
def test_only_what_is_asked_for(case):
    for wanted in ("weight", "x", "bias"):
        named = dict(zip(("x", "weight", "bias", "stride"), sample(*case), strict=True))
        assert not frcnn_ops.train_conv(**named).requires_grad
        named[wanted].requires_grad_()
        frcnn_ops.train_conv(**named).sum().backward()
        tensors = {name: tensor for name, tensor in named.items() if name != "stride"}
        assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]


@needs_winograd
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_threads_gives_the_same_bits(threads):
    arguments = sample(*CASES[2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(frcnn_ops.train_conv, *arguments)[:3]  # torch sums the bias's
        torch.set_num_threads(threads)
        for found, one in zip(results(frcnn_ops.train_conv, *arguments)[:3], expected, strict=True):
            assert torch.equal(found, one)
    finally:
        torch.set_num_threads(before)


# The folder of the tests comes last, so that it hides no installed package.
PRINTED = f"""
import sys
sys.path.append({str(ROOT)!r})
import frcnn_ops, hashlib
from tests.ops.test_train_conv import sample
x, weight, bias, stride = sample(1, 64, 32, 40, 41, 3, 1)
found = frcnn_ops.winograd_weight_gradient(x, frcnn_ops.train_conv(x, weight, bias, stride))
print(hashlib.sha256(found.contiguous().numpy().tobytes()).hexdigest())
"""


def test_narrower_vectors_give_the_same_bits():
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("this CPU has one width; tests/cpp/test_winograd.cpp runs them all on any")
    hashes = set()
    for capability in ("avx2", "avx512"):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", PRINTED]
        hashes.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(hashes) == 1


@pytest.mark.parametrize("case", CASES)
def test_no_images(case):
    x, weight, bias, stride = sample(*case)
    for mine, theirs in zip(
        results(frcnn_ops.train_conv, x[:0], weight, bias, stride),
        exact(x[:0], weight, bias, stride),
        strict=True,
    ):
        assert mine.shape == theirs.shape and not mine.any()


@needs_winograd
def test_a_gradient_of_nothing_is_zero():
    x, grad = torch.randn(2, 32, 9, 14), torch.randn(2, 64, 9, 14)
    for part in (slice(0), slice(0, 0)):
        found = frcnn_ops.winograd_weight_gradient(x[..., part], grad[..., part])
        assert found.shape == (64, 32, 3, 3) and not found.any()
    found = frcnn_ops.winograd_weight_gradient(x[:0], grad[:0])
    assert found.shape == (64, 32, 3, 3) and not found.any()


@needs_winograd
def test_op():
    x = torch.randn(2, 32, 9, 14).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 64, 9, 14).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.frcnn_ops.winograd_weight_gradient.default, (x, grad))


@needs_winograd
def test_mistakes_are_named():
    x, grad = torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 4, 4)
    for wrong, message in [
        ((x[0], grad), r"x has shape \[32, 4, 4\]"),
        ((x, grad[..., :3]), r"grad has shape \[1, 32, 4, 3\], expected \[B, K, H, W\]"),
        ((x[:, :15], grad), "x has 15 channels, expected a multiple of 16"),
        ((x, grad[:, :16]), "grad has 16 channels, expected a multiple of 32"),
        ((x.double(), grad.double()), "x is Double, expected float32"),
        ((x, grad.double()), "grad is Double but x is Float"),
    ]:
        with pytest.raises(RuntimeError, match="winograd_weight_gradient: " + message):
            frcnn_ops.winograd_weight_gradient(*wrong)


def test_what_fits():
    def fits(filters, channels, size=3, stride=1, padding=1, groups=1, dtype=torch.float32):
        x = torch.empty(2, channels, 32, 32, dtype=dtype)
        weight = torch.empty(filters, channels // groups, size, size, dtype=dtype)
        return frcnn_ops.train_conv_fits(x, weight, stride, padding, groups)

    assert fits(64, 32) and fits(15, 8) and fits(64, 32, stride=2) and fits(64, 16, size=1, padding=0)
    assert not fits(64, 32, padding=0) and not fits(64, 32, groups=2) and not fits(64, 3, size=7, padding=3)
    assert not fits(64, 32, size=1, padding=0, stride=2) and not fits(64, 32, size=1)
    assert not fits(64, 32, dtype=torch.float64) and not fits(64, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(64, 32)
