"""Every recipe builds, loads a checkpoint-shaped file strictly, trains a step and detects in a real image."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import frcnn
from frcnn.config import BackboneConfig
from frcnn.preprocess import normalize, pad, resize
from frcnn.read_image import read_image
from frcnn.structures import Batch
from frcnn.zoo import COCO_CLASSES
from frcnn.zoo.reference_case import CASES

SIZE = (128, 96)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def published_shapes(backbone: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, written down from the architecture."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, out: int, into: int, kernel: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        shapes.update(
            {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        )
        shapes[f"{name}.num_batches_tracked"] = ()

    convolution("backbone.conv1", 64, 3, 7)
    norm("backbone.bn1", 64)
    into = 64
    for stage, blocks in enumerate(BLOCKS[backbone.depth]):
        out = 256 * 2**stage
        width = 64 * 2**stage if backbone.groups == 1 else backbone.groups * backbone.base_width * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            convolution(f"{name}.conv1", width, into, 1)
            norm(f"{name}.bn1", width)
            convolution(f"{name}.conv2", width, width // backbone.groups, 3)
            norm(f"{name}.bn2", width)
            convolution(f"{name}.conv3", out, width, 1)
            norm(f"{name}.bn3", out)
            if block == 0:
                convolution(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    for level in range(4):
        convolution(f"neck.lateral_convs.{level}.conv", 256, 256 * 2**level, 1, bias=True)
    for level in range(4):
        convolution(f"neck.fpn_convs.{level}.conv", 256, 256, 3, bias=True)
    convolution("rpn_head.rpn_conv", 256, 256, 3, bias=True)
    convolution("rpn_head.rpn_cls", 3, 256, 1, bias=True)
    convolution("rpn_head.rpn_reg", 12, 256, 1, bias=True)
    for name, out, into in (
        ("shared_fcs.0", 1024, 256 * 49),
        ("shared_fcs.1", 1024, 1024),
        ("fc_cls", 81, 1024),
        ("fc_reg", 320, 1024),
    ):
        shapes[f"roi_head.bbox_head.{name}.weight"] = (out, into)
        shapes[f"roi_head.bbox_head.{name}.bias"] = (out,)
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]], input_std: float) -> OrderedDict:
    """Weights that keep activations in range, cut from one pool of random numbers to save time."""
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    state = OrderedDict()
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif len(shape) == 1 and name.endswith(("weight", "running_var")):
            state[name] = torch.full(shape, 0.2 if ".bn3." in name else 1.0)
        elif len(shape) == 1:
            state[name] = torch.zeros(shape)
        else:
            count = int(np.prod(shape))
            values = pool.repeat(-(-count // len(pool)))[:count]
            state[name] = values.mul_(1.4 / np.prod(shape[1:]) ** 0.5).view(shape)
    state["backbone.conv1.weight"] /= input_std
    return state


@pytest.fixture(scope="module")
def sample():
    """A real image and its boxes, at the small size."""
    image = read_image(CASES / "image0.png")
    with np.load(CASES / "r50.npz") as case:
        boxes, labels = torch.from_numpy(case["gt_boxes0"]), torch.from_numpy(case["gt_labels0"])
    resized, scale = resize(image, SIZE)
    return image, resized, boxes * torch.tensor(scale * 2).float(), labels


@pytest.mark.parametrize("name", frcnn.list_recipes())
def test_recipe(name, sample):
    image, resized, boxes, labels = sample
    recipe = frcnn.recipe(name)
    model = frcnn.build(name)
    shapes = published_shapes(recipe.model.backbone)
    assert [(n, tuple(v.shape)) for n, v in model.state_dict().items()] == list(shapes.items())
    state = random_state(shapes, 57.0 if recipe.model.backbone.style == "caffe" else 1.0)
    frcnn.load_checkpoint(model, {"meta": {"CLASSES": COCO_CLASSES}, "state_dict": state})
    assert torch.equal(model.backbone.layer4[2].conv2.weight, state["backbone.layer4.2.conv2.weight"])

    found = model.predict(image, size=SIZE)
    assert found.class_names == COCO_CLASSES
    assert len(found) <= 100 and found.boxes.shape == (len(found), 4)
    assert found.scores.isfinite().all() and (found.scores > 0.05).all()
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= 320).all() and (found.boxes[:, 3] <= 240).all()

    torch.manual_seed(0)
    model.train()
    images = pad([normalize(resized, recipe.data)], recipe.data.pad_divisor)
    losses = model(Batch(images, (resized.shape[:2],), (boxes,), (labels,)))
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    total = sum(losses.values())
    assert total.isfinite() and all(loss >= 0 for loss in losses.values())
    total.backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    frozen = {n for n, _ in model.named_parameters()} - learning
    style = recipe.model.backbone.style
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
        or (style == "caffe" and (".bn" in n or "downsample.1" in n))
    }
    assert frozen == expected
    trained = [p for p in model.parameters() if p.grad is not None]
    assert all(p.grad.isfinite().all() for p in trained)
    weight = model.rpn_head.rpn_conv.weight
    before = weight.detach().clone()
    schedule = recipe.schedule
    torch.optim.SGD(trained, 0.001, schedule.momentum, weight_decay=schedule.weight_decay).step()
    assert not torch.equal(weight, before) and weight.isfinite().all()


@pytest.mark.parametrize(
    "manifest, name",
    [
        ("r50", "faster_rcnn_r50_fpn_1x_coco"),
        ("r50", "faster_rcnn_r50_caffe_fpn_1x_coco"),
        ("r101", "faster_rcnn_r101_fpn_1x_coco"),
        ("x101_32x4d", "faster_rcnn_x101_32x4d_fpn_1x_coco"),
    ],
)
def test_names_and_shapes_are_those_of_mmdetection(manifest, name):
    expected = json.loads((Path(__file__).parent / "cases" / f"{manifest}.json").read_text())
    assert {n: list(s) for n, s in published_shapes(frcnn.recipe(name).model.backbone).items()} == expected
