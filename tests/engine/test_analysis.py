"""Errors, confusion, calibration and curves of detections that are known in advance."""

import numpy as np
import pytest
from by_pycocotools import by_pycocotools
from pycocotools.cocoeval import COCOeval
from tiny_coco import perfect, read_content, write_content, write_tiny

from frcnn.data import load_dataset
from frcnn.engine.analysis import MEAN, analyze
from frcnn.engine.evaluate import score

BAR, SQUARE = 7, 40
OBJECTS = [
    (BAR, [0, 0, 20, 20], 0),
    (BAR, [50, 0, 20, 20], 0),
    (SQUARE, [100, 0, 20, 20], 0),
    (SQUARE, [150, 0, 20, 20], 0),
    (BAR, [0, 100, 20, 20], 0),
    (BAR, [50, 100, 30, 30], 0),
    (BAR, [100, 100, 50, 50], 1),
]
FOUND = [
    (BAR, [0, 0, 20, 20], 0.95),  # right
    (BAR, [2, 0, 20, 20], 0.9),  # the same object again, IoU 0.82
    (BAR, [60, 0, 20, 20], 0.85),  # IoU 0.33 with the second
    (BAR, [100, 0, 20, 20], 0.99),  # a square, taken for a bar
    (SQUARE, [0, 150, 20, 20], 0.7),  # nothing
    (BAR, [160, 0, 20, 20], 0.6),  # IoU 0.33 with a square
    (BAR, [110, 110, 10, 10], 0.97),  # in a crowd region, so neither right nor wrong
    (BAR, [0, 100, 20, 20], 0.2),  # right, and below the score
]


def results(found, image_id=1):
    return [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in found
    ]


@pytest.fixture
def by_hand(tiny, tmp_path):
    """One image with the objects above, and an empty one."""
    content = read_content(tiny[0])
    content["images"] = [
        {"id": number, "file_name": f"{number}.png", "width": 200, "height": 200} for number in (0, 1)
    ]
    content["annotations"] = [
        {"image_id": 1, "category_id": category, "bbox": box, "iscrowd": crowd}
        for category, box, crowd in OBJECTS
    ]
    return load_dataset(write_content(tmp_path, content, "by_hand.json"), tiny[1])


@pytest.fixture
def analysis(by_hand):
    return analyze(by_hand, score(by_hand, results(FOUND)), 0.3)


def test_each_kind_of_error_is_called_by_its_name(analysis):
    counts = {name: error["count"] for name, error in analysis.errors.items()}
    ones = dict.fromkeys(("localization", "classification", "duplicate", "background", "both"), 1)
    # the bar that was found loosely, and the square that was taken for a bar, have been accounted for
    assert counts == {**ones, "missed": 3}
    assert sum(error["share"] for error in analysis.errors.values()) == pytest.approx(1)
    assert analysis.errors["missed"]["share"] == 3 / 8


def test_the_confusion_matrix(analysis):
    assert analysis.confusion == [[1, 0, 3], [1, 0, 1], [3, 1, 0]]


def test_a_lower_score_counts_more(by_hand):
    analysis = analyze(by_hand, score(by_hand, results(FOUND)), 0.1)
    assert analysis.confusion == [[2, 0, 2], [1, 0, 1], [3, 1, 0]]
    assert analysis.errors["missed"]["count"] == 2


def test_an_object_that_two_classes_are_found_on_is_confused_once(by_hand):
    found = results([(BAR, OBJECTS[2][1], 0.9), (BAR, [101, 0, 20, 20], 0.8)])
    analysis = analyze(by_hand, score(by_hand, found))
    assert analysis.confusion == [[0, 0, 4], [1, 0, 1], [1, 0, 0]]
    assert analysis.errors["classification"]["count"] == 2


def test_calibration(analysis):
    by_tenth = {one["tenth"]: one for one in analysis.calibration}
    assert {tenth: one["count"] for tenth, one in by_tenth.items()} == {9: 3, 8: 1, 7: 1, 6: 1, 2: 1}
    assert by_tenth[9]["precision"] == pytest.approx(1 / 3) and by_tenth[2]["precision"] == 1
    assert by_tenth[9]["score"] == pytest.approx((0.95 + 0.9 + 0.99) / 3)
    expected = (abs(0.95 + 0.9 + 0.99 - 1) + 0.85 + 0.7 + 0.6 + (1 - 0.2)) / 7
    assert analysis.calibration_error == pytest.approx(expected)


def test_the_cases_are_in_order_and_say_what_they_are(analysis):
    (doubtful,) = analysis.label_errors
    assert doubtful.text == "bar 0.99: classification, annotated as square"
    assert doubtful.boxes[0] == (100, 0, 120, 20) and len(doubtful.boxes) == 1 + len(OBJECTS)
    assert [case.text for case in analysis.mistakes] == [
        "bar 0.90: duplicate",
        "bar 0.85: localization",
        "square 0.70: background",
        "bar 0.60: both",
    ]
    assert [case.text for case in analysis.misses] == ["bar", "square", "bar"]
    assert analysis.misses[0].boxes[0] == (50, 100, 80, 130)  # the largest; behind it, what was found
    assert len(analysis.misses[0].boxes) == 1 + 6
    assert {case.image for case in analysis.misses} == {analysis.mistakes[0].image}
    assert analysis.misses[0].image.endswith("1.png")


def test_precision_by_recall(analysis):
    """Four bars: one is right behind a mistake of 0.99, the next behind five detections more."""
    curve = analysis.precision["bar"]
    assert len(curve) == 101 and curve[0] == curve[25] == 1 / 2
    assert curve[26] == curve[50] == pytest.approx(2 / 6) and curve[51] == 0
    assert analysis.precision["square"] == [0] * 101
    assert analysis.precision[MEAN] == pytest.approx(np.array(curve) / 2)


def test_a_perfect_detector_has_no_errors(tiny):
    dataset = load_dataset(*tiny)
    analysis = analyze(dataset, score(dataset, perfect(dataset)))
    assert not any(error["count"] for error in analysis.errors.values())
    assert not analysis.mistakes and not analysis.misses and not analysis.label_errors
    assert np.count_nonzero(np.array(analysis.confusion)) == 2
    assert analysis.metrics["bbox_mAP_l"] is None and analysis.per_class["bar"]["AP_l"] is None
    assert analysis.calibration_error == pytest.approx(0.1)


def test_a_detector_that_finds_nothing(tiny):
    dataset = load_dataset(*tiny)
    analysis = analyze(dataset, score(dataset, []))
    assert analysis.errors["missed"] == {"count": 12, "share": 1} and len(analysis.misses) == 12
    assert analysis.calibration == [] and analysis.calibration_error == 0


def test_a_class_without_objects_has_no_figures(by_hand, tmp_path):
    content = read_content(by_hand.annotation_file)
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == BAR]
    dataset = load_dataset(write_content(tmp_path, content), by_hand.image_folder)
    analysis = analyze(dataset, score(dataset, results(FOUND)))
    assert analysis.per_class["square"]["AP"] is None and "square" not in analysis.precision
    assert analysis.precision[MEAN] == analysis.precision["bar"]
    content["annotations"] = content["annotations"][-1:]
    dataset = load_dataset(write_content(tmp_path, content), by_hand.image_folder)
    with pytest.raises(ValueError, match="has no objects"):
        analyze(dataset, score(dataset, results(FOUND)))


def test_totals_are_those_of_pycocotools(tmp_path):
    dataset = load_dataset(*write_tiny(tmp_path, images=40))
    rng = np.random.default_rng(0)
    found = []
    for one in perfect(dataset) * 4:
        category = one["category_id"] if rng.random() < 0.7 else 47 - one["category_id"]
        box = (np.array(one["bbox"]) + rng.normal(0, 4, 4)).clip(1).tolist()
        found.append({**one, "category_id": category, "bbox": box, "score": float(rng.random())})
    result = score(dataset, found)
    analysis = analyze(dataset, result, 0.4)

    # detections below the score taken away, pycocotools finds as many true ones
    theirs = by_pycocotools(dataset, [one for one in found if one["score"] >= 0.4])
    assert isinstance(theirs, COCOeval)
    everywhere = [entry for entry in theirs.evalImgs if entry and entry["aRng"] == [0, 1e10]]
    true = sum(int((entry["dtMatches"][0] > 0).sum()) for entry in everywhere)
    wrong = sum(int((entry["dtMatches"][0] == 0).sum()) for entry in everywhere)
    confusion = np.array(analysis.confusion)
    assert true > 30 and confusion[:2, :2].trace() == true
    kinds = [error["count"] for name, error in analysis.errors.items() if name != "missed"]
    assert sum(kinds) == wrong == confusion[:, :2].sum() - true and min(kinds) > 0
    assert confusion[:2].sum(1).tolist() == [figures["objects"] for figures in analysis.per_class.values()]
    assert analysis.errors["missed"]["count"] <= len(dataset.labels) - true

    assert np.mean(analysis.precision[MEAN]) == pytest.approx(result.metrics["bbox_mAP_50"])
    for key, name in {"AP": "bbox_mAP", "AP50": "bbox_mAP_50", "AP_s": "bbox_mAP_s"}.items():
        figures = [figures[key] for figures in analysis.per_class.values()]
        assert np.mean(figures) == pytest.approx(result.metrics[name])
    for name, figures in result.per_class.items():
        assert (analysis.per_class[name]["AP"], analysis.per_class[name]["AP50"]) == pytest.approx(figures)
