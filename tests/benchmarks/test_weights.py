from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.inputs import make_images
from benchmarks.weights import CANDIDATES, calibrate, generate
from frcnn.detector import FasterRCNN
from frcnn.preprocess import normalize, pad
from frcnn.structures import Batch
from frcnn.zoo.small import small_r18_fpn

RECIPE = small_r18_fpn()


@pytest.fixture(scope="module")
def calibrated():
    """A model, and the two images that it is calibrated on."""
    made, _ = make_images(2, 192, 320)
    batch = Batch(pad([normalize(image, RECIPE.data) for image in made], 32), ((192, 320),) * 2)
    model = FasterRCNN(RECIPE.model, RECIPE.data).eval()
    generate(model)
    calibrate(model, batch)
    return model, batch


def test_weights_depend_on_name_and_seed_only():
    first, second, other = (FasterRCNN(RECIPE.model, RECIPE.data) for _ in range(3))
    generate(first, seed=1)
    generate(second, seed=1)
    generate(other, seed=2)
    name = "roi_head.bbox_head.shared_fcs.0.weight"
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_activations_keep_the_scale_of_the_input_in_both_styles_of_preprocessing():
    image = make_images(1, 96, 160)[0][0]
    unscaled = replace(RECIPE.data, std=(1.0, 1.0, 1.0))
    for data in (RECIPE.data, unscaled):
        model = FasterRCNN(RECIPE.model, data).eval()
        generate(model)
        with torch.no_grad():
            features = model.backbone(normalize(np.ascontiguousarray(image), data)[None])
        assert all(0.1 < feature.std() < 20 for feature in features)


def test_the_wanted_number_of_candidates_passes_and_most_boxes_are_background(calibrated):
    model, batch = calibrated
    with torch.no_grad():
        features = model.neck(model.backbone(batch.images))
        boxes, scores = model.rpn_head.propose(
            *model.rpn_head(features), torch.tensor(batch.sizes, dtype=torch.float32)
        )
        logits = model.roi_head(features, boxes)[0][(scores > -torch.inf).flatten()]
    probabilities = logits.softmax(1)
    above = (probabilities[:, :-1] > model.config.roi_head.score_threshold).sum()
    assert above == pytest.approx(2 * CANDIDATES, abs=2)
    assert (probabilities[:, -1] > 0.5).float().mean() > 0.5


def test_detections_survive_on_every_image(calibrated):
    model, batch = calibrated
    found = model(batch)
    assert all(5 <= len(image) <= 100 for image in found)
