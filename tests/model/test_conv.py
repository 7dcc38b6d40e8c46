"""The leaf convolution: norms folded as it runs compute what the norm computes, gradients included."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frcnn.conv import Conv, Linear, fold_all, for_calls


def lively_norm(channels, training):
    norm = nn.BatchNorm2d(channels).double().train(training)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    norm.running_var.uniform_(0.1, 2)
    return norm


@pytest.mark.parametrize("training", [False, True], ids=["folded", "learning its statistics"])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_what_follows_a_convolution(training, add, relu):
    torch.manual_seed(0)
    conv, norm = Conv(4, 6, 3, 2, padding=1, groups=2, bias=False).double(), lively_norm(6, training)
    x, other = torch.randn(2, 4, 9, 7).double(), torch.randn(2, 6, 5, 4).double() if add else None
    twin = copy.deepcopy(norm)
    inputs = [x.requires_grad_(), conv.weight, *([other.requires_grad_()] if add else [])]

    found = conv(x, norm, add=other, relu=relu)
    expected = twin(F.conv2d(x, conv.weight, None, 2, 1, groups=2))
    expected = expected + other if add else expected
    expected = expected.relu() if relu else expected
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    weight = torch.randn_like(found)
    for one, wanted in zip(
        torch.autograd.grad((found * weight).sum(), [*inputs, *norm.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [*inputs, *twin.parameters()]),
        strict=True,
    ):
        assert torch.allclose(one, wanted, rtol=1e-9, atol=1e-9)


def test_each_norm_is_folded_with_its_own_eps():
    torch.manual_seed(0)
    layers = [(Conv(3, 4, 1, bias=False).double(), lively_norm(4, training=False)) for _ in range(3)]
    layers[1][1].eps = 0.5
    folded = fold_all(layers)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    for conv, norm in layers:
        torch.testing.assert_close(F.conv2d(x, *folded[norm]), norm(F.conv2d(x, conv.weight)))


def test_layers_side_by_side():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 7)
    first, second = Conv(8, 3, 1), Conv(8, 12, 1)
    (both,) = for_calls([first, second])
    assert torch.allclose(first(x, both), torch.cat([first(x), second(x)], 1), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        own, joined = for_calls([first], [first, second])
        assert own[0].dtype == own[1].dtype == torch.bfloat16
        assert torch.equal(first(x, own), first(x)) and torch.equal(first(x, joined)[:, :3], first(x))
    x = torch.randn(4, 2, 2, 3)
    first, second = Linear(12, 3), Linear(12, 5)
    (both,) = for_calls([first, second])
    assert torch.allclose(first(x, both), torch.cat([first(x), second(x)], 1), atol=1e-6)
    assert torch.equal(first(x, relu=True), first(x).relu())
