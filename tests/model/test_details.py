"""Class probabilities and features beside each detection, of the plain and the folded network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from frcnn.config import BackboneConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN
from frcnn.inference.fold import fold
from frcnn.structures import Batch

SMALL = ModelConfig(
    backbone=BackboneConfig(depth=18),
    fpn_channels=32,
    rpn=RPNConfig(pre_nms_test=100, post_nms_test=50),
    roi_head=RoIHeadConfig(fc_channels=64, max_detections=30),
    num_classes=3,
)
SCALES = [(0.5, 0.5), (2.0, 1.0)]


def make(config: ModelConfig = SMALL) -> tuple[FasterRCNN, Batch]:
    torch.manual_seed(0)
    model = FasterRCNN(config, class_names=("a", "b", "c")).eval()
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.mul_(60)
        model.rpn_head.rpn_cls.weight.mul_(20)
    return model, Batch(torch.randn(2, 3, 64, 96), ((64, 96), (64, 80)))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_details_explain_each_score(dtype, agnostic):
    model, batch = make(replace(SMALL, roi_head=replace(SMALL.roi_head, class_agnostic=agnostic)))
    network = model if dtype is None else fold(model, dtype)
    for plain, found in zip(network.detect(batch, SCALES), network.detect(batch, SCALES, True), strict=True):
        assert len(found) > 3
        for field in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(plain, field), getattr(found, field))
        assert plain.probabilities is None and plain.features is None

        assert found.probabilities.shape == (len(found), 4) and found.probabilities.dtype == torch.float32
        assert torch.allclose(found.probabilities.sum(1), torch.ones(len(found)), atol=1e-5)
        assert torch.equal(found.probabilities.gather(1, found.labels[:, None])[:, 0], found.scores)

        assert found.features.shape == (len(found), 64) and found.features.dtype == torch.float32
        logits = network.roi_head.bbox_head.fc_cls(found.features.to(network.dtype)).float()[:, :4]
        tolerance = 1e-5 if dtype != torch.bfloat16 else 2e-2
        assert torch.allclose(logits.softmax(1), found.probabilities, atol=tolerance)


def test_details_are_padded_like_the_rest():
    model, batch = make(replace(SMALL, roi_head=replace(SMALL.roi_head, score_threshold=0.9)))
    sizes, scales = torch.tensor(batch.sizes).float(), torch.ones(2, 2)
    padded = model.detect_padded(batch.images, sizes, scales, details=True)
    assert len(model.detect_padded(batch.images, sizes, scales)) == 4
    counts, probabilities, features = padded[3:]
    assert probabilities.shape == (2, 30, 4) and features.shape == (2, 30, 64)
    for index, count in enumerate(counts.tolist()):
        assert count < 30
        assert not probabilities[index, count:].any() and not features[index, count:].any()
