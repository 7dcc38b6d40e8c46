import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import frcnn_ops

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not frcnn_ops.winograd_available(), reason="needs AVX2, AVX-512 or NEON")


def sample(batch=1, channels=16, filters=32, height=9, width=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(filters, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    bias = torch.randn(filters, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def exact(x, weight, bias, relu):
    out = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    return out.relu() if relu else out


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 32, 1, 1), (1, 16, 32, 4, 4), (2, 48, 64, 9, 14), (1, 256, 256, 13, 21), (3, 16, 96, 33, 2)],
)
def test_values(shape, relu, with_bias):
    x, weight, bias = sample(*shape)
    bias = bias if with_bias else None
    found = frcnn_ops.winograd_conv(x, frcnn_ops.winograd_weight(weight), bias, relu=relu)
    expected = exact(x, weight, bias, relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 8e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_threads_gives_the_same_bits(threads):
    x, weight, bias = sample(1, 32, 32, 50, 60)
    packed = frcnn_ops.winograd_weight(weight)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = frcnn_ops.winograd_conv(x, packed, bias)
        torch.set_num_threads(threads)
        assert torch.equal(frcnn_ops.winograd_conv(x, packed, bias), expected)
    finally:
        torch.set_num_threads(before)


# The folder of the tests comes last, so that it hides no installed package.
PRINTED = f"""
import sys
sys.path.append({str(ROOT)!r})
import frcnn_ops, hashlib
from tests.ops.test_winograd_conv import sample
x, weight, bias = sample(1, 64, 32, 30, 41)
found = frcnn_ops.winograd_conv(x, frcnn_ops.winograd_weight(weight), bias, relu=True)
print(hashlib.sha256(found.numpy().tobytes()).hexdigest())
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


def test_an_image_is_the_same_in_any_batch():
    x, weight, bias = sample(3, 32, 32, 21, 30)
    packed = frcnn_ops.winograd_weight(weight)
    together = frcnn_ops.winograd_conv(x, packed, bias)
    for index in range(3):
        assert torch.equal(together[index], frcnn_ops.winograd_conv(x[index : index + 1], packed, bias)[0])


def test_layouts_and_empty_inputs():
    x, weight, bias = sample(2)
    packed = frcnn_ops.winograd_weight(weight)
    expected = frcnn_ops.winograd_conv(x, packed, bias)
    assert torch.equal(frcnn_ops.winograd_conv(x.contiguous(), packed, bias), expected)
    wide = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(frcnn_ops.winograd_conv(wide[:, 16:], packed, bias), expected)
    assert frcnn_ops.winograd_conv(x[:0], packed).shape == (0, 32, 9, 14)
    assert frcnn_ops.winograd_conv(x[..., :0], packed).shape == (2, 32, 9, 0)


@pytest.mark.parametrize("relu", [False, True])
def test_sum(relu):
    x, weight, bias = sample(2)
    add = torch.randn(2, 32, 9, 14)
    packed = frcnn_ops.winograd_weight(weight)
    expected = exact(x, weight, bias, False) + add
    expected = expected.relu() if relu else expected
    for layout in (add, add.contiguous(memory_format=torch.channels_last)):
        found = frcnn_ops.winograd_conv(x, packed, bias, layout, relu)
        assert (found - expected).abs().max() < 8e-6 * expected.abs().max()


def test_a_nan_is_not_hidden_by_the_relu():
    x, weight, _ = sample()
    x[0, 0, 4, 4] = torch.nan
    assert frcnn_ops.winograd_conv(x, frcnn_ops.winograd_weight(weight), relu=True)[0, :, 4, 4].isnan().all()


def test_op():
    x, weight, bias = sample()
    packed = frcnn_ops.winograd_weight(weight)
    torch.library.opcheck(torch.ops.frcnn_ops.winograd_conv.default, (x, packed, bias, None, True))
    torch.library.opcheck(
        torch.ops.frcnn_ops.winograd_conv.default, (x, packed, None, torch.rand(1, 32, 9, 14), False)
    )


def test_mistakes_are_named():
    x, weight, bias = sample()
    packed = frcnn_ops.winograd_weight(weight)
    assert frcnn_ops.winograd_fits(16, 32) and not frcnn_ops.winograd_fits(15, 32)
    for wrong in (weight[:, :, :2], weight[:31], weight[:, :15], weight[0]):
        with pytest.raises(ValueError, match=r"expected a weight \[K, C, 3, 3\]"):
            frcnn_ops.winograd_weight(wrong)
    with pytest.raises(RuntimeError, match="16 channels but weight is for 32"):
        frcnn_ops.winograd_conv(x, frcnn_ops.winograd_weight(torch.zeros(32, 32, 3, 3)))
    with pytest.raises(RuntimeError, match="expected float32"):
        frcnn_ops.winograd_conv(x.double(), packed)
    with pytest.raises(RuntimeError, match="bias has shape"):
        frcnn_ops.winograd_conv(x, packed, bias[:3])
    with pytest.raises(RuntimeError, match="add has shape"):
        frcnn_ops.winograd_conv(x, packed, bias, x)
    with pytest.raises(RuntimeError, match="weight has shape"):
        frcnn_ops.winograd_conv(x, weight)
    with pytest.raises(RuntimeError, match="weight has 16 filters, expected a multiple of 32"):
        frcnn_ops.winograd_conv(x, packed[:1])
    with pytest.raises(RuntimeError, match=r"weight has shape .* at most 2147483647 along each dimension"):
        frcnn_ops.winograd_conv(x[:, :0], torch.zeros(2**58, 36, 0, 16))
    with pytest.raises(RuntimeError, match="the result would have shape"):
        frcnn_ops.winograd_conv(torch.zeros(2**20, 0, 2**15, 2**15), torch.zeros(2**20, 36, 0, 16))
