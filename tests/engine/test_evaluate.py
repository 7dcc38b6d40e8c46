"""COCO metrics of detections that are known in advance."""

import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_coco import read_content, write_content

from frcnn.config import DataConfig, ModelConfig
from frcnn.data import DatasetError, load_dataset
from frcnn.engine.evaluate import evaluate
from frcnn.inference.stream import Predictor
from frcnn.structures import Detections


class Oracle(Predictor):
    """Answers with given detections, image by image in the data set's order."""

    data = DataConfig(size=(96, 96))

    def __init__(self, answers, class_names=("bar", "square"), num_classes=2):
        self.config = ModelConfig(num_classes=num_classes)
        self.class_names = class_names
        self.answers = iter(answers)

    def results(self, items, read, batch_size=1, threads=None):
        for item in items:
            image, extra = read(item)
            yield extra, image and next(self.answers)


def truth_of(annotations, images, order=(0, 1)):
    """The data set's own boxes as perfect detections, labels mapped through `order`."""
    dataset = load_dataset(annotations, images)
    answers = []
    for index in range(len(dataset)):
        boxes, labels = map(torch.from_numpy, dataset.boxes_of(index))
        answers.append(Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), torch.tensor(order)[labels]))
    return answers


def nothing(count):
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return [empty] * count


def test_perfect_detections_score_one(tiny):
    result = evaluate(Oracle(truth_of(*tiny)), *tiny, batch_size=4)
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
    assert result.metrics["bbox_mAP_50"] == pytest.approx(1.0)
    assert result.metrics["bbox_mAP_l"] == -1
    assert result.per_class == {"bar": pytest.approx((1.0, 1.0)), "square": pytest.approx((1.0, 1.0))}
    assert "bbox_mAP_50   1.000" in result.table() and "square" in result.table()


def test_no_detections_score_zero(tiny, tmp_path):
    result = evaluate(Oracle(nothing(6)), *tiny, output=tmp_path / "none.json")
    assert result.metrics["bbox_mAP"] == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_images_without_detections_count(tiny):
    answers = truth_of(*tiny)
    result = evaluate(Oracle(answers[:3] + nothing(3)), *tiny)
    assert 0.3 < result.metrics["bbox_mAP"] < 0.7


def test_both_forms_whatever_the_batch_size_and_the_threads(tiny, model, tmp_path):
    """And the model returns to its mode."""
    model.train()
    score_threshold = model.roi_head.config.score_threshold
    assert score_threshold < 0.1
    written = []
    for detector in (model, model.optimize()):
        for options in ({}, {"batch_size": 4}, {"threads": 3}):
            output = tmp_path / f"{len(written)}.json"
            evaluate(detector, *tiny, output=output, progress=False, **options)
            written.append(output.read_bytes())
    assert model.training and len(json.loads(written[0])) > 0
    assert written[0] == written[1] == written[2] and written[3] == written[4] == written[5]


def test_a_stop_is_heard_after_an_image(tiny):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(KeyboardInterrupt):
        evaluate(Oracle(nothing(6)), *tiny, stop=stop)
    assert len(asked) == 3


def test_options_are_checked(tiny):
    for options in ({"batch_size": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match=r"=0: it is a whole number, 1 "):
            evaluate(Oracle(nothing(6)), *tiny, **options)


def test_results_have_the_ids_of_the_data_set_and_score_alike_in_pycocotools(tiny, tmp_path):
    generator = torch.Generator().manual_seed(0)
    answers = []
    for found in truth_of(*tiny):
        noise = torch.randn(found.boxes.shape, generator=generator) * 2
        answers.append(Detections(found.boxes + noise, found.scores, found.labels))
    output = tmp_path / "found.json"
    with pytest.raises(FileNotFoundError, match="there is no folder"):  # before any work
        evaluate(Oracle(answers), *tiny, output=tmp_path / "results" / "found.json")
    result = evaluate(Oracle(answers), *tiny, output=output)

    content = read_content(tiny[0])
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number + 1
    truth = COCO(str(write_content(tmp_path, content, "truth.json")))
    evaluator = COCOeval(truth, truth.loadRes(str(output)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert 0 < result.metrics["bbox_mAP"] < 1
    assert list(result.metrics.values()) == pytest.approx(evaluator.stats.tolist())
    assert {entry["category_id"] for entry in json.loads(output.read_text())} == {7, 40}


def test_an_annotation_with_id_zero_counts(tiny):
    # the fixture's ids begin at 0, which COCOeval itself takes for "unmatched"
    assert read_content(tiny[0])["annotations"][0]["id"] == 0
    result = evaluate(Oracle(truth_of(*tiny)), *tiny)
    assert result.metrics["bbox_AR_100"] == pytest.approx(1.0)


def test_classes_are_matched_by_name(tiny):
    model = Oracle(truth_of(*tiny, order=(1, 0)), class_names=("square", "bar"))
    assert evaluate(model, *tiny).metrics["bbox_mAP"] == pytest.approx(1.0)


def test_other_classes_are_refused_with_both_lists(tiny):
    with pytest.raises(DatasetError, match=r"only in the model: +ring\n.*only in the data set: +square"):
        evaluate(Oracle([], class_names=("bar", "ring")), *tiny)
    with pytest.raises(DatasetError, match=r"80 classes without names.* has 2: bar, square"):
        evaluate(Oracle([], class_names=(), num_classes=80), *tiny)


def test_a_model_without_names_is_taken_by_number(tiny):
    model = Oracle(truth_of(*tiny), class_names=())
    assert evaluate(model, *tiny).metrics["bbox_mAP"] == pytest.approx(1.0)


def test_crowd_regions_absorb_detections(tiny, tmp_path):
    content = read_content(tiny[0])
    content["annotations"][0]["iscrowd"] = 1
    annotations = write_content(tmp_path, content)
    result = evaluate(Oracle(truth_of(*tiny)), annotations, tiny[1])
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
