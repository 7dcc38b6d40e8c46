"""pycocotools' own metrics, which ours must equal, and data of COCO's kind to try both on."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frcnn.data.annotations import Report
from frcnn.data.coco import CocoDataset


def by_pycocotools(dataset: CocoDataset, results: list[dict]) -> COCOeval:
    """What pycocotools finds of detections in COCO's results form. Its ids count from 1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image_id} for image_id in dataset.image_ids.tolist()],
            "categories": [{"id": category_id} for category_id in dataset.category_ids],
            "annotations": [{**entry, "id": number} for number, entry in enumerate(dataset.entries(), 1)],
        }
        truth.createIndex()
        found = COCO()
        boxes = [{**one, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} for one in results]
        found.dataset = {
            **truth.dataset,
            "annotations": [{**one, "id": number} for number, one in enumerate(boxes, 1)],
        }
        found.createIndex()
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def crowded_data(
    images: int, objects: int, detections: int, classes: int, seed: int = 0, levels: int = 2**24
) -> tuple[CocoDataset, list[dict]]:
    """A data set of random boxes, a hundredth of them crowd regions, and detections of it in COCO's results
    form, some near an object and some anywhere. levels: how many scores there are; few make ties."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        sides = np.exp(rng.normal(4, 1, (count, 2))).clip(2, 400)
        return np.concatenate([rng.random((count, 2)) * (640 - sides), sides], axis=1)

    counts = np.bincount(rng.integers(0, images, objects), minlength=images)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    xywh, labels = boxes(objects), rng.integers(0, classes, objects)
    dataset = CocoDataset(
        Path("made.json"),
        Path("."),
        tuple(f"class {number}" for number in range(classes)),
        tuple(range(1, classes + 1)),
        rng.permutation(images) + 7,
        np.full(images, 640),
        np.full(images, 640),
        np.zeros(0, np.uint8),
        np.zeros(images + 1, np.int64),
        xywh,
        xywh[:, 2:].prod(1),
        labels,
        rng.random(objects) < 0.01,
        np.ones(objects, bool),
        offsets,
        Report(),
    )
    image = rng.integers(0, images, detections)
    near = (rng.random(detections) < 0.4) & (counts[image] > 0)
    chosen = np.minimum(offsets[image] + (rng.random(detections) * counts[image]).astype(int), objects - 1)
    found = np.where(near[:, None], xywh[chosen] + rng.normal(0, 4, (detections, 4)), boxes(detections))
    found[:, 2:] = found[:, 2:].clip(1)
    same = near & (rng.random(detections) < 0.8)
    label = np.where(same, labels[chosen], rng.integers(0, classes, detections))
    score = np.where(near, rng.beta(3, 2, detections), rng.beta(1, 8, detections))
    columns = (
        dataset.image_ids[image].tolist(),
        (label + 1).tolist(),
        found.astype(np.float32).astype(float).tolist(),
        (np.round(score * levels) / levels).tolist(),
    )
    names = ("image_id", "category_id", "bbox", "score")
    return dataset, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
