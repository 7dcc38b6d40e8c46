"""A training step of every loss that a recipe may have: the CPU's losses, and gradients that are as good."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from noise_batch import noise_batch
from small_recipe import small

from frcnn.config import BoxLoss
from frcnn.detector import FasterRCNN
from frcnn.engine.distributed import Processes
from frcnn.engine.step import Learner
from frcnn.zoo.recipes import recipe


def config(loss, class_agnostic):
    made = small(recipe("faster_rcnn_r50_fpn_1x_coco"))
    rpn = replace(made.model.rpn, pre_nms_train=60, post_nms_train=60, samples=64)
    head = replace(made.model.roi_head, samples=64, box_loss=loss, class_agnostic=class_agnostic)
    model = replace(made.model, rpn=rpn, roi_head=head)
    return replace(made, model=model, schedule=replace(made.schedule, clip_grad_norm=None))


def step(made, device):
    """Losses and gradients of the first step, from the same weights, samples and images on any device."""
    torch.manual_seed(0)
    model = FasterRCNN(made.model, made.data).to(device).to(memory_format=torch.channels_last).train()
    learner = Learner(model, made.schedule, "float32", Processes())
    torch.manual_seed(1)
    values, broken = learner.step(model, [noise_batch(((64, 64), (50, 60)), 30).to(device)], 0.0).read()
    assert not broken
    return values, {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "loss, class_agnostic", [*((loss, False) for loss in get_args(BoxLoss)), ("giou", True)]
)
def test_a_training_step_is_the_cpus(loss, class_agnostic):
    made = config(loss, class_agnostic)
    (wanted, wanted_gradients), (found, gradients) = step(made, "cpu"), step(made, "cuda")
    assert wanted["loss_bbox"] > 0 and wanted["loss_rpn_bbox"] > 0
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        tolerance = 1e-3 * float(wanted_gradients[name].abs().max())
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-3, atol=tolerance, msg=name)
