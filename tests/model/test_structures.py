"""Detections as a sequence, and what they are turned into."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch

from frcnn.inference.stream import Predictor
from frcnn.structures import Batch, Detection, Detections

BOXES = [[10.5, 20.0, 30.2, 40.0], [0.0, 0.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]]


def make(**details) -> Detections:
    return Detections(
        torch.tensor(BOXES),
        torch.tensor([0.875, 0.5, 0.25]),
        torch.tensor([1, 0, 1]),
        ("cat", "dog"),
        **details,
    )


def scores(found: Detections) -> list[float]:
    return found.scores.tolist()


def test_each_detection_is_plain_values():
    found = make()
    assert len(found) == 3 == len(list(found))
    box, score, label, name = next(iter(found))
    assert box == pytest.approx(BOXES[0]) and (score, label, name) == (0.875, 1, "dog")
    assert found[1] == Detection((0.0, 0.0, 5.0, 5.0), 0.5, 0, "cat") == list(found)[1]
    assert found[-1] == found[2] == found[np.int64(2)] == found[torch.tensor(2)]
    with pytest.raises(IndexError):
        found[3]
    assert not list(found[:0])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1), [0.875]),
        (slice(None, None, -1), [0.25, 0.5, 0.875]),
        (torch.tensor([True, False, True]), [0.875, 0.25]),
        (np.array([False, True, False]), [0.5]),
        ([True, True, False], [0.875, 0.5]),
        ([2, 0], [0.25, 0.875]),
        (torch.tensor([1]), [0.5]),
        (np.array([-1]), [0.25]),
        ([], []),
    ],
)
def test_parts_are_detections(index, expected):
    part = make(probabilities=torch.rand(3, 3), features=torch.rand(3, 7))[index]
    assert scores(part) == expected and part.class_names == ("cat", "dog")
    assert part.boxes.shape == (len(expected), 4) and part.labels.dtype == torch.int64
    assert part.probabilities.shape == (len(expected), 3) and part.features.shape == (len(expected), 7)


def test_other_indices_are_refused():
    found = make()
    for index in ([True, False], torch.tensor([0.5]), [5]):
        with pytest.raises(IndexError):
            found[index]
    with pytest.raises(TypeError):
        found["boxes"]


def test_details_stay_beside_their_detections():
    features = torch.arange(3.0)[:, None]
    found = make(features=features, probabilities=features + 10)
    assert found.above(0.5).features.flatten().tolist() == [0, 1]
    assert found[[2, 0]].probabilities.flatten().tolist() == [12, 10]
    moved = found.to("meta")
    assert moved.features.device.type == moved.probabilities.device.type == moved.boxes.device.type == "meta"
    assert make().above(0.5).features is None
    assert set(found.to_numpy()) == {"boxes", "scores", "labels", "probabilities", "features"}


def test_of_keeps_these_classes():
    found = make()
    names = [one.name for one in found]
    assert len(set(names)) > 1
    assert [one.name for one in found.of(names[0])] == [name for name in names if name == names[0]]
    assert len(found.of(*set(names))) == len(found) and len(found.of()) == 0
    with pytest.raises(ValueError, match="ghost"):
        found.of("ghost")


def test_above_keeps_the_score_itself():
    assert scores(make().above(0.5)) == [0.875, 0.5]
    assert len(make().above(0.95)) == 0


def test_repr_counts_classes():
    assert repr(make()) == "<3 detections: 2 dog (0.88), 1 cat (0.50)>"
    assert repr(make()[:0]) == "<0 detections>"
    many = Detections(torch.zeros(20, 4), torch.linspace(1, 0, 20), torch.arange(20))
    assert repr(many).endswith("1 7 (0.63), 12 more classes>")


def test_to_json_survives_json():
    entries = json.loads(json.dumps(make().to_json()))
    assert entries[1] == {"label": 0, "name": "cat", "score": 0.5, "box": [0.0, 0.0, 5.0, 5.0]}


def test_to_numpy():
    arrays = make().to_numpy()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "boxes": "float32",
        "scores": "float32",
        "labels": "int64",
    }
    assert np.array_equal(arrays["boxes"], np.float32(BOXES))


def test_crops_hold_every_touched_pixel():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    boxes = [[10.5, 20, 30.2, 25], [-5, -5, 3, 2], [35, 28, 99, 99], [40, 30, 40, 30], [7, 8, 7, 8]]
    found = Detections(torch.tensor(boxes), torch.ones(5), torch.zeros(5, dtype=torch.int64))
    crops = found.crops(image)
    assert [crop.shape for crop in crops] == [(5, 21, 3), (2, 3, 3), (2, 5, 3), (1, 1, 3), (1, 1, 3)]
    assert np.array_equal(crops[0], image[20:25, 10:31]) and np.array_equal(crops[3][0, 0], image[29, 39])
    crops[0][:] = 0
    assert image[20:25, 10:31].any()
    assert np.array_equal(found.crops(image[..., ::-1], rgb=True)[1], crops[1])


def test_other_packages_are_named_where_they_are_missing(monkeypatch):
    for package in ("pandas", "supervision"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"pip install {package}, .* extra {package}"):
            getattr(make(), f"to_{package}")()


def test_to_pandas_and_supervision_give_what_these_take(monkeypatch):
    monkeypatch.setitem(
        sys.modules,
        "pandas",
        types.SimpleNamespace(
            DataFrame=lambda rows, columns: [dict(zip(columns, r, strict=True)) for r in rows]
        ),
    )
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    row = make().to_pandas()[1]
    assert row == {"x1": 0, "y1": 0, "x2": 5, "y2": 5, "score": 0.5, "label": 0, "name": "cat"}
    theirs = make().to_supervision()
    assert theirs["xyxy"].shape == (3, 4) and theirs["class_id"].tolist() == [1, 0, 1]
    assert theirs["confidence"].dtype == np.float32
    assert theirs["data"]["class_name"].tolist() == ["dog", "cat", "dog"]


def test_a_detector_cuts_each_image_at_its_count():
    padded = torch.rand(2, 3, 4), torch.rand(2, 3), torch.zeros(2, 3).long(), torch.tensor([2, 0])

    class Padded(Predictor):
        device = torch.device("cpu")
        class_names = ("cat",)

        def _run(self, images, sizes, scales, details):
            return *padded, torch.rand(2, 3, 2), torch.rand(2, 3, 5)

    batch = Batch(torch.zeros(2, 3, 32, 32), ((32, 32),) * 2)
    first, second = Padded().detect(batch, [(1.0, 1.0)] * 2, details=True)
    assert (len(first), len(second)) == (2, 0) and first[0].name == "cat"
    assert torch.equal(first.boxes, padded[0][0, :2])
    assert first.probabilities.shape == (2, 2) and second.features.shape == (0, 5)
