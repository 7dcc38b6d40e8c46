"""Why a model fails: its detections against the annotations, as numbers and as cases to look at.

Matches and precisions are COCO's own. Errors are those of TIDE (Bolya et al. 2020,
doi:10.1007/978-3-030-58580-8_33), at IoU 0.5 and 0.1. A detection that COCO matches to no object of
its class is the first of these that fits: "localization", IoU 0.1 to 0.5 with one of its class;
"classification", at least 0.5 with one of another class; "duplicate", at least 0.5 with one of its class,
which a better detection has; "background", under 0.1 with all; else "both". "missed" are objects without a
detection that no error of the first two kinds is about. Detections from a given score on are counted; the
paper weighs all of them, by what mending them would add to AP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hotcoco import mask

from frcnn.data import CocoDataset
from frcnn.data.check import Example
from frcnn.engine.evaluate import Evaluation

FOREGROUND, BACKGROUND = 0.5, 0.1
ERRORS = ("localization", "classification", "duplicate", "background", "both")
CONFIDENT = 0.8
"""Score from which a detection may be right where it contradicts its annotation."""
MOST_CASES = 100
MEAN = "mean of classes"
SIZES = ("AP", "AP_s", "AP_m", "AP_l")


@dataclass(frozen=True)
class Analysis:
    """metrics: as `Evaluation`'s; per_class: name -> AP, AP_s, AP_m, AP_l, AP50, objects; None: no objects.

    precision: MEAN, or a class -> 101 precisions at IoU 0.5, at recalls 0, 0.01 … 1. confusion: counts of
    [annotated][detected as], background last: COCO's pairs, then pairs across classes of IoU 0.5, best
    scores first; what is left is missed, or a detection of nothing. errors: kind -> count and share.
    calibration: by tenths of the scores of all detections: tenth, count, mean score and precision at IoU 0.5;
    calibration_error: by how much the latter two differ, in the mean over detections. label_errors:
    detections of score 0.8 where nothing, or another class, is annotated; mistakes: other wrong ones, both
    the most confident first; misses: the largest first. An example's first box is meant, others are
    annotated (in misses: detected).
    """

    images: int
    min_score: float
    seconds_per_image: float
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    precision: dict[str, list[float]]
    confusion: list[list[int]]
    errors: dict[str, dict[str, float]]
    calibration: list[dict[str, float]]
    calibration_error: float
    mistakes: list[Example]
    misses: list[Example]
    label_errors: list[Example]


def analyze(dataset: CocoDataset, result: Evaluation, min_score: float = 0.3) -> Analysis:
    """Analyze what `evaluate` found; confusion and errors are of detections of at least `min_score`.

    Raises ValueError where nothing is annotated, or `result` has no evaluator.
    """
    evaluator, labels, names = result.evaluator, dataset.labels, dataset.class_names
    objects = np.flatnonzero(~dataset.crowd)
    if evaluator is None or evaluator.eval is None or not len(objects):
        raise ValueError(f"{dataset.annotation_file}: it has no objects, or the result has no evaluator")
    found = evaluator.cocoDt.dataset["annotations"]
    image = np.argsort(dataset.image_ids)[np.array([one["image_id"] for one in found], int)]
    label = np.array([one["category_id"] for one in found], int)
    xywh = np.array([one["bbox"] for one in found], float).reshape(-1, 4)
    score = np.array([one["score"] for one in found], float)
    # by id, which counts from 1; without what lies in a crowd region or behind 100 others of its class
    known = evaluator.image_diagnostics(FOREGROUND)
    match = np.array([known["dt_match"].get(one["id"], 0) - 1 for one in found], int)
    counted = np.array([one["id"] in known["dt_status"] for one in found], bool)
    best = np.argsort(-score, kind="stable")
    best = best[(counted & (score >= min_score))[best]]
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.box_offsets))

    partner, kind, about = match.copy(), np.full(len(found), -1), np.full(len(found), -1)
    for index in range(len(dataset)):
        rows, own = best[image[best] == index], objects[owner[objects] == index]
        free = ~np.isin(own, match[rows])
        for row in rows[match[rows] < 0]:
            iou = mask.iou(xywh[[row]], dataset.xywh[own], [0] * len(own))[0] if len(own) else np.zeros(0)
            kind[row], nearest = _error(iou, label[row] == labels[own])
            about[row] = own[nearest] if nearest >= 0 else -1
            if (iou * free).max(initial=0) >= FOREGROUND:
                taken = (iou * free).argmax()
                partner[row], free[taken] = own[taken], False

    confusion = np.zeros((len(names) + 1, len(names) + 1), int)
    np.add.at(confusion, (np.where(partner >= 0, labels[partner], len(names))[best], label[best]), 1)
    np.add.at(confusion, (labels[np.setdiff1d(objects, partner[best])], len(names)), 1)
    missed = np.setdiff1d(objects, [match[best], about[best]])
    counts = {name: int((kind == number).sum()) for number, name in enumerate(ERRORS)}
    counts["missed"] = len(missed)
    wrong = best[kind[best] >= 0]
    doubtful = np.isin(kind[wrong], (1, 3)) & (score[wrong] >= CONFIDENT)

    def mistake(row: int) -> Example:
        text = f"{names[label[row]]} {score[row]:.2f}: {ERRORS[kind[row]]}"
        text += f", annotated as {names[labels[about[row]]]}" if kind[row] == 1 else ""
        return _example(dataset, image[row], text, xywh[row], dataset.xywh[owner == image[row]])

    def miss(row: int) -> Example:
        around = xywh[best[image[best] == owner[row]]]
        return _example(dataset, owner[row], names[labels[row]], dataset.xywh[row], around)

    precision = evaluator.eval["precision"]  # [IoU thresholds, recalls, classes, sizes, max detections]
    curves = {name: precision[0, :, label, 0, -1] for label, name in enumerate(names)}
    curves = {name: curve for name, curve in curves.items() if curve[0] > -1}
    calibration = evaluator.calibration(10, FOREGROUND)
    bins = [
        {"tenth": n, "count": bin["count"], "score": bin["avg_confidence"], "precision": bin["avg_accuracy"]}
        for n, bin in enumerate(calibration["bins"])
        if bin["count"]
    ]
    mean = {MEAN: sum(curves.values()) / len(curves)}
    return Analysis(
        images=len(dataset),
        min_score=min_score,
        seconds_per_image=result.seconds_per_image,
        metrics={name: None if value == -1 else value for name, value in result.metrics.items()},
        per_class={name: _figures(dataset, precision, label) for label, name in enumerate(names)},
        precision={name: curve.tolist() for name, curve in (mean | curves).items()},
        confusion=confusion.tolist(),
        errors={name: {"count": n, "share": n / max(1, sum(counts.values()))} for name, n in counts.items()},
        calibration=bins,
        calibration_error=calibration["ece"],
        mistakes=[mistake(row) for row in wrong[~doubtful][:MOST_CASES]],
        misses=[miss(row) for row in missed[np.argsort(-dataset.areas[missed], kind="stable")][:MOST_CASES]],
        label_errors=[mistake(row) for row in wrong[doubtful][:MOST_CASES]],
    )


def _error(iou: np.ndarray, same: np.ndarray) -> tuple[int, int]:
    """Which of ERRORS, and about which object if one of the first two, given IoUs and equality of class."""
    own, other = np.where(same, iou, 0), np.where(same, 0, iou)
    if BACKGROUND <= own.max(initial=0) < FOREGROUND:
        return 0, int(own.argmax())
    if other.max(initial=0) >= FOREGROUND:
        return 1, int(other.argmax())
    if own.max(initial=0) >= FOREGROUND:
        return 2, -1
    return (3 if iou.max(initial=0) < BACKGROUND else 4), -1


def _figures(dataset: CocoDataset, precision: np.ndarray, label: int) -> dict[str, float | None]:
    parts = {name: precision[:, :, label, size, -1] for size, name in enumerate(SIZES)}
    parts["AP50"] = parts["AP"][0]
    means = {name: float(part.mean()) if part.min() > -1 else None for name, part in parts.items()}
    return means | {"objects": int((dataset.labels[~dataset.crowd] == label).sum())}


def _example(dataset: CocoDataset, index: int, text: str, one: np.ndarray, others: np.ndarray) -> Example:
    boxes = np.concatenate([one[None], others])
    boxes[:, 2:] += boxes[:, :2]
    return Example(str(dataset.image_path(index)), text, tuple(map(tuple, boxes.round(2).tolist())))
