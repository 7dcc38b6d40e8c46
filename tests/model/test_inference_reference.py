"""The fast detector against numbers computed by MMDetection."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from frcnn.detector import FasterRCNN
from frcnn.inference import compare_detections
from frcnn.preprocess import normalise, pad
from frcnn.static_detector import StaticDetector
from frcnn.structures import Batch, Detections
from frcnn.zoo.recipes import recipe


@pytest.fixture(scope="module")
def case(shared):
    reference = shared / "reference"
    spec = importlib.util.spec_from_file_location("weights", reference / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    chosen = recipe("faster_rcnn_r50_fpn_1x_coco")
    model = FasterRCNN(chosen.model, chosen.data).eval()
    model.load_state_dict(weights.fill(json.loads((reference / "manifests" / "r50.json").read_text())))
    arrays = np.load(reference / "r50.npz")
    image = arrays["image0"]
    batch = Batch(pad([normalise(image, chosen.data)], chosen.data.pad_divisor), (image.shape[:2],))
    return model, arrays, batch


def test_features(case):
    model, arrays, batch = case
    static = StaticDetector(model)
    with torch.no_grad():
        features = static.neck(static.backbone(batch.images))
    for level, feature in enumerate(features):
        expected = torch.from_numpy(arrays[f"fpn{level}"])
        assert (feature[:, ::32] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_detections(case):
    model, arrays, batch = case
    expected = Detections(
        *(torch.from_numpy(arrays[f"det_{field}0"]) for field in ("boxes", "scores", "labels"))
    )
    found = model.optimize().detect(batch, [tuple(arrays["scale_factor0"].tolist()[:2])])
    agreement = compare_detections(expected, found[0], min_iou=0.99)
    assert agreement.matched == 1
    assert agreement.max_score_drift < 1e-4
    assert torch.equal(found[0].labels, expected.labels)
