"""What a training step keeps for its backward pass, counted."""

from dataclasses import replace

import pytest
import torch

from benchmarks.activations import kept_for_backward
from frcnn.backbone import ResNet
from frcnn.config import BackboneConfig
from frcnn.detector import FasterRCNN
from frcnn.structures import Batch
from frcnn.zoo.recipes import recipe


def small_batch(side=128):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[10.0, 12, 60, 70], [30, 40, 100, 90]])
    return Batch(images, ((side, side),) * 2, (boxes, boxes), (torch.tensor([0, 1]),) * 2)


def test_a_training_step_keeps_few_activations():
    """Nothing is kept between a convolution, its norm, the sum and the ReLU.

    A bottleneck keeps its three convolutions' inputs; the numbers of R-50's maps are added up by hand here.
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
    assert kept_for_backward(recomputed, batch) < 0.9 * kept_for_backward(model, batch)
    assert kept_for_backward(model, batch, bfloat16=True) < 0.75 * kept_for_backward(model, batch)

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
