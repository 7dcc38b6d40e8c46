"""What an operator becomes in ONNX computes what the operator does, run by ONNX Runtime."""

import numpy as np
import pytest
import torch

import frcnn_ops

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread")


class Called(torch.nn.Module):
    """A graph of one call: `function(*tensors, *rest)`."""

    def __init__(self, function, tensors, rest):
        super().__init__()
        self.function, self.tensors, self.rest = function, tensors, rest

    def forward(self, *inputs):
        return self.function(*self.tensors(inputs), *self.rest)


def both(function, inputs, rest, tensors=lambda inputs: inputs):
    """What ONNX Runtime returns and what the operator does, as lists."""
    module = Called(function, tensors, rest)
    program = torch.onnx.export(
        torch.export.export(module, inputs),
        custom_translation_table=frcnn_ops.onnx_translations(),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {place.name: value.numpy() for place, value in zip(session.get_inputs(), inputs, strict=True)}
    expected = module(*inputs)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    return session.run(None, feed), [value.numpy() for value in expected]


def assert_equal(found, expected, **tolerance):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, **tolerance)


@pytest.mark.parametrize(("rgb", "channels"), [(True, 3), (False, 3), (False, 1), (False, 5)])
def test_normalize_images(rgb, channels):
    images = torch.randint(0, 256, (2, 8, 10, channels), dtype=torch.uint8, generator=seeded())
    sizes = torch.tensor([[8.0, 10.0], [5.0, 7.0]])
    mean, std = (123.675, 116.28, 103.53, 99.0, 1.5), (58.395, 57.12, 57.375, 60.0, 70.0)
    rest = (mean[:channels], std[:channels], rgb, torch.float32)
    found, expected = both(frcnn_ops.normalize_images, (images, sizes), rest)
    assert_equal(found, expected, rtol=0, atol=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("min_size, count", [(0.0, 60), (6.0, 20)])
def test_select_proposals(min_size, count):
    shapes, anchors = [(8, 12), (4, 6)], 3
    logits = tuple(torch.randn(2, anchors, *shape, generator=seeded(1)) for shape in shapes)
    deltas = tuple(0.5 * torch.randn(2, 4 * anchors, *shape, generator=seeded(2)) for shape in shapes)
    sizes = torch.tensor([[64.0, 96.0], [50.0, 70.0]])
    rest = ((8.0, 16.0), (2.0,), (0.5, 1.0, 2.0), (1.0, 1.0, 1.0, 1.0), min_size, 0.5, 100, count)
    found, expected = both(
        frcnn_ops.select_proposals,
        (*logits, *deltas, sizes),
        rest,
        lambda inputs: (inputs[:2], inputs[2:4], inputs[4]),
    )
    assert 0 < np.isfinite(expected[1]).sum() <= 2 * count
    assert_equal(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_pyramid_roi_align(levels, sampling_ratio, random_boxes):
    maps = tuple(torch.randn(2, 5, 24 >> i, 32 >> i, generator=seeded(i)) for i in range(levels))
    boxes = random_boxes(40, extent=120.0)
    boxes[0] = torch.tensor([-9.0, -9.0, 3.0, 5.0])  # over the map's edge
    boxes[1] = 0.0  # as what is absent is
    boxes[2] = torch.tensor([0.0, 0.0, 128.0, 96.0])
    rois = torch.cat([torch.arange(40.0)[:, None] % 2, boxes], 1)
    found, expected = both(
        frcnn_ops.pyramid_roi_align,
        (*maps, rois),
        ((3, 4), [4, 8, 16][:levels], sampling_ratio, 16.0),
        lambda inputs: (inputs[:-1], inputs[-1]),
    )
    assert_equal(found, expected, rtol=1e-4, atol=1e-5)


def test_roi_align_that_is_not_aligned(random_boxes):
    rois = torch.cat([torch.zeros(20, 1), random_boxes(20, extent=60.0)], 1)
    features = torch.randn(1, 4, 16, 16, generator=seeded())
    found, expected = both(frcnn_ops.roi_align, (features, rois), (3, 0.25, 2, False))
    assert_equal(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("most", [10, 200])
def test_select_detections(agnostic, most, random_boxes):
    """200 are more than there are candidates: the rest is unused."""
    classes, count = 3, 40
    probabilities = torch.randn(2, count, classes + 1, generator=seeded(1)).softmax(-1)
    deltas = 0.3 * torch.randn(2, count, 4 * (1 if agnostic else classes), generator=seeded(2))
    proposals = torch.stack([random_boxes(count, seed=seed) for seed in (0, 1)])
    present = torch.arange(count) < torch.tensor([[40], [25]])
    sizes, scales = torch.tensor([[180.0, 200.0], [150.0, 120.0]]), torch.tensor([[1.0, 1.0], [0.5, 0.6]])
    found, expected = both(
        frcnn_ops.select_detections,
        (probabilities, deltas, proposals, present, sizes, scales),
        ((0.1, 0.1, 0.2, 0.2), 0.2, 0.5, most),
    )
    assert (expected[4] > 0).all() and (most == 10 or (expected[4] < most).all())
    assert_equal(found, expected, rtol=1e-5, atol=1e-4)
