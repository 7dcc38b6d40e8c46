"""COCO metrics of detections that are known in advance."""

import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_coco import read_content, write_content
from torch import nn

from frcnn.config import DataConfig, ModelConfig
from frcnn.data import DatasetError, load_coco
from frcnn.engine.evaluate import evaluate
from frcnn.structures import Detections


class Oracle(nn.Module):
    """Answers with given detections, picture by picture in the data set's order."""

    def __init__(self, answers, class_names=("bar", "square"), num_classes=2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = ModelConfig(num_classes=num_classes)
        self.data = DataConfig(size=(96, 96))
        self.class_names = class_names
        self.answers = iter(answers)

    def detect(self, batch, scales):
        assert not self.training
        return [next(self.answers) for _ in batch.sizes]


def truth_of(annotations, images, order=(0, 1)):
    """The data set's own boxes as perfect detections, labels mapped through `order`."""
    dataset = load_coco(annotations, images)
    answers = []
    for index in range(len(dataset)):
        boxes, labels = map(torch.from_numpy, dataset.boxes_of(index))
        answers.append(Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), torch.tensor(order)[labels]))
    return answers


def nothing(count):
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return [empty] * count


def test_perfect_detections_score_one(tiny):
    result = evaluate(Oracle(truth_of(*tiny)).train(), *tiny, workers=0, batch_size=4)
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
    assert result.metrics["bbox_mAP_50"] == pytest.approx(1.0)
    assert result.metrics["bbox_mAP_l"] == -1
    assert result.per_class == {"bar": pytest.approx((1.0, 1.0)), "square": pytest.approx((1.0, 1.0))}
    assert "bbox_mAP_50   1.000" in result.table() and "square" in result.table()


def test_no_detections_score_zero(tiny, tmp_path):
    result = evaluate(Oracle(nothing(6)), *tiny, workers=0, output=tmp_path / "none.json")
    assert result.metrics["bbox_mAP"] == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_pictures_without_detections_count(tiny):
    answers = truth_of(*tiny)
    result = evaluate(Oracle(answers[:3] + nothing(3)), *tiny, workers=0)
    assert 0.3 < result.metrics["bbox_mAP"] < 0.7


def test_the_model_returns_to_its_mode(tiny):
    model = Oracle(nothing(6)).train()
    evaluate(model, *tiny, workers=0)
    assert model.training


def test_results_have_the_ids_of_the_data_set_and_score_alike_in_pycocotools(tiny, tmp_path):
    generator = torch.Generator().manual_seed(0)
    answers = []
    for found in truth_of(*tiny):
        noise = torch.randn(found.boxes.shape, generator=generator) * 2
        answers.append(Detections(found.boxes + noise, found.scores, found.labels))
    output = tmp_path / "results" / "found.json"
    result = evaluate(Oracle(answers), *tiny, workers=0, output=output)

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
    result = evaluate(Oracle(truth_of(*tiny)), *tiny, workers=0)
    assert result.metrics["bbox_AR_100"] == pytest.approx(1.0)


def test_classes_are_matched_by_name(tiny):
    model = Oracle(truth_of(*tiny, order=(1, 0)), class_names=("square", "bar"))
    assert evaluate(model, *tiny, workers=0).metrics["bbox_mAP"] == pytest.approx(1.0)


def test_other_classes_are_refused_with_both_lists(tiny):
    with pytest.raises(DatasetError, match=r"only in the model: +ring\n.*only in the data set: +square"):
        evaluate(Oracle([], class_names=("bar", "ring")), *tiny, workers=0)
    with pytest.raises(DatasetError, match=r"80 classes without names.* has 2: bar, square"):
        evaluate(Oracle([], class_names=(), num_classes=80), *tiny, workers=0)


def test_a_model_without_names_is_taken_by_number(tiny):
    model = Oracle(truth_of(*tiny), class_names=())
    assert evaluate(model, *tiny, workers=0).metrics["bbox_mAP"] == pytest.approx(1.0)


def test_crowd_regions_absorb_detections(tiny, tmp_path):
    content = read_content(tiny[0])
    content["annotations"][0]["iscrowd"] = 1
    annotations = write_content(tmp_path, content)
    result = evaluate(Oracle(truth_of(*tiny)), annotations, tiny[1], workers=0)
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
