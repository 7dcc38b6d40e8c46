"""What detection asks of the device beside convolutions and matrix products, counted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulated_gpu import record
from small_recipe import small

from frcnn.conv import Conv
from frcnn.detector import FasterRCNN
from frcnn.inference.fast_detector import FastDetector
from frcnn.inference.fold import FoldedConv, FoldedLinear, fold, fold_norm
from frcnn.zoo.recipes import recipe

SMALL = ("launch", "memset", "memcpy")
EPILOGUES = ("product", "cudnn", "kernel")
IMAGES = [np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)] * 3


@pytest.fixture(scope="module")
def model():
    """R-50-FPN with narrow heads and little to select."""
    made = recipe("faster_rcnn_r50_fpn_1x_coco")
    config = small(made).model
    rpn = replace(config.rpn, pre_nms_test=50, post_nms_test=50)
    torch.manual_seed(0)
    config = replace(config, backbone=made.model.backbone, rpn=rpn)
    return FasterRCNN(config, made.data).to("cuda").eval()


def asked(fast, images):
    """What the second of two equal calls does, in order."""
    fast.predict(images, (128, 96), len(images))
    return record(lambda: fast.predict(images, (128, 96), len(images)))[1]


def epilogues(rows):
    return sum("epilogue_kernel" in row.name for row in rows if row.kind == "launch")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_few_launches_whatever_the_batch(model, precision):
    """At most 45 of an image; a larger batch asks for nothing more."""
    fast = model.optimize(precision)
    counts = []
    for images in (IMAGES[:1], IMAGES):
        rows = asked(fast, images)
        kinds = Counter(row.kind for row in rows)
        names = [row.name for row in rows if row.kind == "launch"]
        assert kinds["sync"] == 1 and kinds["layout"] == 0
        assert sum("normalize_kernel" in name for name in names) == 1
        counts.append(sum(kinds[kind] for kind in SMALL))
    assert counts[0] <= 45 and counts[1] == counts[0], rows


def test_passes_over_maps_that_convolutions_do_not_make(model):
    """The pyramid's; then also its top's and the RPN's outputs; then every layer's but the shortcuts'."""
    found = {}
    for epilogue in EPILOGUES:
        rows = asked(FastDetector(model, epilogue=epilogue), IMAGES[:1])
        assert not [row for row in rows if row.kind == "launch" and "relu" in row.name.lower()]
        found[epilogue] = epilogues(rows)
    assert found == {"product": 7, "cudnn": 7 + 1 + 5, "kernel": 53 - 4 + 8 + 5 * 2}


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 1, 1), (3, 2, 4), (1, 2, 1)])
def test_a_layer_is_the_same_whoever_finishes_it(epilogue, dtype, relu, kernel, stride, groups):
    torch.manual_seed(0)
    conv = Conv(16, 32, kernel, stride, kernel // 2, groups=groups).cuda()
    weight, bias = fold_norm(conv, None)
    folded = FoldedConv(conv, weight, bias, dtype, epilogue)
    x = torch.randn(2, 16, 12, 18).cuda().contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    with torch.no_grad():
        plain = conv(x)
        add = torch.randn(plain.shape).cuda().contiguous(memory_format=torch.channels_last)
        for other in (None, add):
            wanted = plain if other is None else plain + other
            wanted = wanted.relu() if relu else wanted
            found = folded(x.to(dtype), add=None if other is None else other.to(dtype), relu=relu)
            assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)


def test_a_linear_layer_is_one_product():
    layer = torch.nn.Linear(48, 32).cuda()
    folded = FoldedLinear(layer, torch.float32, "product")
    x = torch.randn(20, 48).cuda()
    for relu in (False, True):
        found, rows = record(lambda relu=relu: folded(x, relu=relu))
        assert [row.kind for row in rows] == ["gemm"]
        wanted = layer(x).relu() if relu else layer(x)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_the_network_is_the_models_whoever_finishes_its_layers(model, epilogue):
    images = torch.randint(0, 255, (2, 96, 128, 3), dtype=torch.uint8).cuda()
    sizes = torch.tensor([[96.0, 128.0], [90.0, 77.0]]).cuda()
    wanted, *_ = model.propose(images, sizes)
    found, *_ = fold(model, epilogue=epilogue).propose(images, sizes)
    for ours, level in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, level, rtol=1e-4, atol=1e-4 * float(level.abs().max()))
