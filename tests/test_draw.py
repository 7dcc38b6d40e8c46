"""Boxes and captions on images."""

import numpy as np
import pytest
import torch

from frcnn.draw import class_color, draw_boxes
from frcnn.structures import Detections

GRAY = np.full((240, 320, 3), 128, dtype=np.uint8)


def test_the_image_itself_is_left_alone_and_the_outline_has_the_class_color():
    before = GRAY.copy()
    drawn = draw_boxes(GRAY, np.array([[50, 60, 200, 180]]), [1], [""])
    assert (GRAY == before).all()
    assert drawn.shape == GRAY.shape and drawn.dtype == np.uint8
    for y, x in ((60, 120), (180, 120), (100, 50), (100, 200)):
        assert tuple(drawn[y, x]) == class_color(1)
    assert (drawn[70:170, 60:190] == 128).all() and (drawn[:50] == 128).all()


def test_the_caption_stands_above_the_box_on_a_bar_of_its_color():
    drawn = draw_boxes(GRAY, np.array([[50, 60, 200, 180]]), [0], ["cat 0.98"])
    bar = drawn[48:58, 50:80].reshape(-1, 3)
    assert (bar == class_color(0)).all(axis=1).mean() > 0.3
    assert (drawn[185:] == 128).all()


@pytest.mark.parametrize("box", [[0, 0, 320, 240], [-50, -50, 20, 20], [300, 230, 500, 400], [5, 5, 5, 5]])
def test_captions_stay_inside_the_image(box):
    drawn = draw_boxes(GRAY, np.array([box]), [2], ["a caption"])
    assert (drawn == class_color(2)).all(axis=2).sum() > 300


def test_names_of_any_script_are_drawn():
    """OpenCV before 5 draws a question mark for every other character than ASCII's."""
    captions = ("größe", "gr??e", "gr????e", "автомобиль", "汽车", "自転", "??", "??????")
    drawn = [draw_boxes(GRAY, np.array([[50, 60, 200, 180]]), [0], [caption]) for caption in captions]
    assert all((one != other).any() for i, one in enumerate(drawn) for other in drawn[:i])


def test_the_best_box_is_on_top():
    box = np.array([[50, 60, 200, 180]])
    both = draw_boxes(GRAY, np.concatenate([box, box]), [0, 1], ["", ""])
    assert tuple(both[60, 120]) == class_color(0)


def test_extreme_and_missing_boxes_are_harmless():
    assert (draw_boxes(GRAY, np.zeros((0, 4)), [], []) == GRAY).all()
    wild = np.array([[np.nan, 0, 10, 10], [-1e9, -1e9, 1e9, 1e9], [0, 0, np.inf, 5]])
    assert draw_boxes(GRAY, wild, [0, 1, 2], ["x", "y", "z"]).shape == GRAY.shape
    assert draw_boxes(GRAY[:4, :4], np.array([[0, 0, 4, 4]]), [0], ["long caption"]).shape == (4, 4, 3)


def test_neighboring_classes_look_different():
    colors = np.array([class_color(label) for label in range(12)], dtype=int)
    for label in range(11):
        assert np.abs(colors[label] - colors[label + 1]).sum() > 100
    assert len({tuple(color) for color in colors}) == 12


def test_detections_draw_what_is_certain_enough():
    found = Detections(
        torch.tensor([[50.0, 60, 200, 180], [10, 10, 30, 30]]), torch.tensor([0.9, 0.2]), torch.tensor([0, 1])
    )
    drawn = found.draw(GRAY, min_score=0.5)
    assert (drawn[100, 50] == class_color(0)).all() and (drawn[20, 10] == 128).all()
    assert (found.draw(GRAY, min_score=0.1)[20, 10] == class_color(1)).all()
