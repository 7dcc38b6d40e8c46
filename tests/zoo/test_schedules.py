"""The learning rate of every iteration, against the closed form written out from the published settings."""

from __future__ import annotations

import pytest

import frcnn
from frcnn.engine.schedule import learning_rate

COCO_IMAGES = 117_266
"""Training images that remain after those without boxes and the small ones are dropped."""


def expected_rate(iteration: int, processes: int, steps: int, decays: tuple[int, int]) -> float:
    """0.02 for 16 images; a tenth after each decay; a line from 0.001 of it over the first 500 steps."""
    rate = 0.02 / 16 * 2 * processes
    first, second = (epoch * steps for epoch in decays)
    if iteration >= second:
        rate *= 0.01
    elif iteration >= first:
        rate *= 0.1
    if iteration < 500:
        rate *= 0.001 * (500 - iteration) / 500 + iteration / 500
    return rate


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize(
    "name, epochs, decays",
    [
        ("faster_rcnn_r50_fpn_1x_coco", 12, (8, 11)),
        ("faster_rcnn_r50_fpn_2x_coco", 24, (16, 22)),
        ("faster_rcnn_r50_caffe_fpn_mstrain_2x_coco", 24, (16, 23)),
        ("faster_rcnn_r50_caffe_fpn_mstrain_3x_coco", 36, (28, 34)),
    ],
)
def test_every_iteration(name, epochs, decays, processes):
    schedule = frcnn.recipe(name).schedule
    assert schedule.epochs == epochs
    steps = COCO_IMAGES // (2 * processes)
    last = epochs * steps - 1
    corners = [edge + offset for edge in (0, 500, *(d * steps for d in decays)) for offset in (-1, 0, 1)]
    iterations = {*range(520), *corners, *range(0, last, 9973), last} - {-1}
    for iteration in sorted(iterations):
        rate = learning_rate(iteration, steps, 2 * processes, schedule)
        assert rate == pytest.approx(expected_rate(iteration, processes, steps, decays), rel=1e-12)


def test_eight_processes_train_at_the_published_rate():
    schedule = frcnn.recipe("faster_rcnn_r50_caffe_fpn_mstrain_3x_coco").schedule
    steps = 1000
    assert learning_rate(600, steps, 16, schedule) == pytest.approx(0.02)
    assert learning_rate(0, steps, 16, schedule) == pytest.approx(0.02 * 0.001)
    assert learning_rate(35 * steps, steps, 16, schedule) == pytest.approx(0.0002)
    assert (schedule.momentum, schedule.weight_decay) == (0.9, 1e-4)
