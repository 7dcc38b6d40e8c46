"""Detection over files and folders."""

import json

import cv2
import numpy as np
import pytest
import torch

from frcnn.engine.detect import detect, find_images
from frcnn.structures import Detections


class Model:
    """Finds one box, a quarter of the picture, and one faint box."""

    def predict(self, image, size=None):
        height, width = image.shape[:2]
        boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2], [1.0, 1.0, 2.0, 2.0]])
        return Detections(boxes, torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), ("a", "b"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (40, 60)), ("deep/a.png", (30, 30)), ("deep/b.jpg", (50, 20))):
        cv2.imwrite(str(tmp_path / "in" / name), np.full((*size, 3), 90, np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def test_folders_keep_their_structure_and_boxes_are_in_pixels(folder, tmp_path):
    result = detect(Model(), [folder], tmp_path / "out")
    entries = json.loads(result.detections.read_text())
    assert [entry["image"] for entry in entries] == [
        str(folder / n) for n in ("a.png", "deep/a.png", "deep/b.jpg")
    ]
    assert entries[0] == {
        "image": str(folder / "a.png"),
        "width": 60,
        "height": 40,
        "detections": [{"label": 1, "name": "b", "score": pytest.approx(0.9), "box": [0, 0, 30, 20]}],
    }
    for name, original in (("a.png", "a.png"), ("deep/b.jpg", "deep/b.jpg")):
        drawn, source = cv2.imread(str(tmp_path / "out" / name)), cv2.imread(str(folder / original))
        assert drawn.shape == source.shape and (drawn != source).any()
    assert result.boxes == 3 and not result.failed


def test_pictures_are_not_drawn_unless_wanted(folder, tmp_path):
    result = detect(Model(), [folder / "a.png"], tmp_path / "out", draw=False)
    assert result.pictures == []
    assert list((tmp_path / "out").iterdir()) == [result.detections]


def test_a_lower_threshold_lists_faint_boxes(folder, tmp_path):
    assert detect(Model(), [folder / "a.png"], tmp_path / "out", min_score=0.05).boxes == 2


def test_equal_names_do_not_overwrite_each_other(folder):
    targets = [str(target) for _, target in find_images([folder / "a.png", folder / "deep" / "a.png"])]
    assert targets == ["a.png", "a_2.png"]


def test_a_damaged_picture_does_not_stop_the_others(folder, tmp_path):
    (folder / "a.png").write_bytes(b"not a picture")
    result = detect(Model(), [folder], tmp_path / "out")
    assert list(result.failed) == [str(folder / "a.png")]
    assert len(result.pictures) == 2
    assert "error" in json.loads(result.detections.read_text())[0]


def test_nothing_to_detect_in_is_an_error(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such image or folder"):
        find_images([folder / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no pictures"):
        find_images([tmp_path / "empty"])
