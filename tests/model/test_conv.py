"""The leaf convolution: norms folded as it runs compute what the norm computes, gradients included."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frcnn.backbone import ResNet
from frcnn.config import BackboneConfig
from frcnn.conv import Conv, Linear
from frcnn.detector import FasterRCNN
from frcnn.structures import Batch
from frcnn.zoo.recipes import recipe


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


def test_layers_side_by_side():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 7)
    first, second = Conv(8, 3, 1), Conv(8, 12, 1)
    assert torch.allclose(first(x, beside=second), torch.cat([first(x), second(x)], 1), atol=1e-6)
    x = torch.randn(4, 2, 2, 3)
    first, second = Linear(12, 3), Linear(12, 5)
    assert torch.allclose(first(x, beside=second), torch.cat([first(x), second(x)], 1), atol=1e-6)
    assert torch.equal(first(x, relu=True), first(x).relu())


def small_batch(side=128):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[10.0, 12, 60, 70], [30, 40, 100, 90]])
    return Batch(images, ((side, side),) * 2, (boxes, boxes), (torch.tensor([0, 1]),) * 2)


def saved_for_backward(model, batch, bfloat16=False):
    """Bytes of the storages that a training step keeps for its backward pass, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = model(batch)
    assert losses["loss_cls"].requires_grad
    return sum(saved.values())


def test_a_training_step_keeps_few_activations():
    """Nothing is kept between a convolution, its norm, the sum and the ReLU.

    A bottleneck keeps its three convolutions' inputs and nothing else, which benchmarks/saved.py counts at
    full size; here the widths of R-50's maps are added up by hand.
    """
    entry = recipe("faster_rcnn_r50_fpn_1x_coco")
    model = ResNet(entry.model.backbone).to(memory_format=torch.channels_last).train()
    x = torch.randn(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    saved = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.ndim == 4 and tensor.shape[0] == 1:
            saved[storage.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    expected = 256 * 64 * 64  # the frozen part's result, input of stage 2
    for blocks, width, side in ((4, 128, 32), (6, 256, 16), (3, 512, 8)):
        expected += width * (2 * side) ** 2 + width * side**2 + 4 * width * side**2  # the first block
        expected += (blocks - 1) * (width * side**2 * 2 + 4 * width * side**2)
    assert sum(saved.values()) == expected
    assert outputs[-1].requires_grad


def test_recomputing_blocks_keeps_less_and_changes_nothing():
    entry = recipe("faster_rcnn_r50_fpn_1x_coco")
    torch.manual_seed(0)
    model = FasterRCNN(entry.model, entry.data).train()
    recomputed = FasterRCNN(
        replace(entry.model, backbone=replace(entry.model.backbone, recompute=True)), entry.data
    ).train()
    recomputed.load_state_dict(model.state_dict())
    batch = small_batch()
    assert saved_for_backward(recomputed, batch) < 0.9 * saved_for_backward(model, batch)
    assert saved_for_backward(model, batch, bfloat16=True) < 0.75 * saved_for_backward(model, batch)

    gradients = []
    for each in (model, recomputed):
        torch.manual_seed(1)
        sum(each(batch).values()).backward()
        gradients.append([p.grad for p in each.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_statistics_that_learn_are_not_counted_twice():
    with pytest.raises(ValueError, match="recompute"):
        ResNet(BackboneConfig(norm_eval=False, recompute=True))
