"""COCO box metrics by hotcoco, which are pycocotools' to the last digit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from hotcoco import COCO, COCOeval
from tqdm import tqdm

from frcnn.checked import OptionError, check_whole
from frcnn.data import CocoDataset, DatasetError, load_dataset
from frcnn.data.loader import BadImage, bad_image, read_annotated
from frcnn.engine.distributed import Processes
from frcnn.engine.options import check_parallel
from frcnn.engine.validation_loss import ValidationLosses, means
from frcnn.files import check_keeps, check_writable, replace_text
from frcnn.inference.stream import Predictor
from frcnn.preprocess import Prepared
from frcnn.read_image import ImageError
from frcnn.structures import Detections

STATISTICS = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_mAP_s", "bbox_mAP_m", "bbox_mAP_l")
RECALLS = ("bbox_AR_1", "bbox_AR_10", "bbox_AR_100", "bbox_AR_s", "bbox_AR_m", "bbox_AR_l")


@dataclass(frozen=True)
class Evaluation:
    """COCO metrics, 0…1; -1 where a size has no object.

    metrics: bbox_mAP (IoU 0.50:0.95), bbox_mAP_50, bbox_mAP_75, bbox_mAP_s/m/l (by object size),
    bbox_AR_1/10/100 (by detections per image), bbox_AR_s/m/l. per_class: class name -> (AP, AP50); NaN for a
    class without objects. losses: where they were asked for, loss_rpn_cls, loss_rpn_bbox, loss_cls and
    loss_bbox, as training has them, and their sum, loss. failed: path of an image that could not be used ->
    why; nothing is detected on it, and its objects count as missed. seconds_per_image: of this process,
    reading and resizing included. evaluator: hotcoco's, in the first process: detections, matches,
    precisions; an image's id in it is its place in the order of ids, a category's its label.
    """

    metrics: dict[str, float]
    per_class: dict[str, tuple[float, float]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds_per_image: float = field(default=0.0, compare=False)
    evaluator: COCOeval | None = field(default=None, compare=False, repr=False)

    def failures(self) -> str:
        """How many images could not be used, and why, in lines for people."""
        reasons = [f"  {reason}" for reason in self.failed.values()]
        return "\n".join(
            [f"{len(reasons)} images could not be used; their objects count as missed:", *reasons]
        )

    def table(self) -> str:
        """The metrics in lines for people."""
        lines = [f"{name:<12} {value:6.3f}" for name, value in self.metrics.items()]
        if self.losses:
            lines += ["", *(f"{name:<13} {value:.4f}" for name, value in self.losses.items())]
        if self.failed:
            lines += ["", self.failures()]
        if self.per_class:
            width = max(map(len, [*self.per_class, "class"]))
            lines += ["", f"{'class':<{width}}     AP   AP50"]
            lines += [f"{n:<{width}} {ap:6.3f} {ap50:6.3f}" for n, (ap, ap50) in self.per_class.items()]
        return "\n".join(lines)


def evaluate(
    model: Predictor,
    annotations: str | Path | CocoDataset,
    images: str | Path | None = None,
    *,
    batch_size: int = 1,
    threads: int | None = None,
    output: str | Path | None = None,
    losses: bool = False,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Detect objects in every image of a COCO data set and compute the COCO metrics.

    `model` is a FasterRCNN, or what its `optimize` returns; images go through it as in its `stream`, with
    `batch_size` and `threads` as there. The model's classes must be the data set's, by name (by number where
    the model has no names). `output` takes the detections as a COCO results file, with the data set's own
    image and category ids. Annotations count as in pycocotools: crowd regions absorb detections, and objects
    too small to train on still count. In a group of torch.distributed, which `frcnn eval` makes under
    torchrun, every process detects a share and all get the same result. An image that cannot be used is named
    in the result. `stop` is asked after every image: where it says yes in one process, all of them raise
    KeyboardInterrupt.

    `losses` also computes the losses of a FasterRCNN in evaluation mode, by a second forward pass of every
    image on its own. They count what training would take of the data set (images with a box, no crowd
    regions), with anchors and proposals sampled by a fixed seed, and are averaged over the images. They do
    not depend on `batch_size`, `threads` or the number of processes, and use none of torch's random numbers.
    (Training averages over the sampled boxes of a step's images together; that is the same where each image
    has equally many.)

    Raises DatasetError on an unusable data set, other classes than the model's, or if no image can be used;
    OptionError on `batch_size` or `threads` out of range and for `losses` of a model that only detects,
    OSError where `output` cannot be written and ValueError where it is one of the data set's files, before
    any work.
    """
    check_options(batch_size, threads, output)
    if isinstance(annotations, CocoDataset):
        dataset = annotations
    elif images is None:
        raise OptionError(f"images=None: name the folder of the images of {annotations}")
    else:
        dataset = load_dataset(annotations, images)
    check_keeps(dataset.files(), output)
    category_ids = match_classes(model, dataset)
    processes = Processes.current()
    share = list(range(processes.rank, len(dataset), processes.count))
    stop = stop or (lambda: False)
    progress = progress and processes.first
    of_images = ValidationLosses(model, dataset, category_ids) if losses else None
    began = time.perf_counter()
    part = _detect(model, dataset, category_ids, share, batch_size, threads, progress, stop, of_images)
    seconds = (time.perf_counter() - began) / max(1, len(share))
    found, *told = part
    failed: dict[str, str] = {}
    parts: list[dict[str, list[float]]] = []
    for unusable, complete, values in processes.gather(told, "the other processes' end of the evaluation"):
        if not complete:
            raise KeyboardInterrupt
        failed |= unusable
        parts.append(values)
    if len(failed) == len(dataset):
        raise DatasetError(
            f"none of the {len(dataset)} images of {dataset.annotation_file} can be used: "
            + next(iter(failed.values()))
        )
    results = list(chain(*processes.gather_in_first(found, "the detections of the other processes")))
    if output is not None and processes.first:
        replace_text(output, json.dumps(results))
    scored = score(dataset, results) if processes.first else None
    sent = scored and replace(scored, evaluator=None)  # which is large
    of_first = processes.gather(sent, "the metrics, which the first process computes")[0]
    return replace(
        of_first,
        losses=means(parts),
        failed=failed,
        seconds_per_image=seconds,
        evaluator=scored and scored.evaluator,
    )


def check_options(batch_size: int, threads: int | None, output: str | Path | None) -> None:
    """What `evaluate` checks before work. Raises OptionError, OSError."""
    check_whole("batch_size", batch_size, 1)
    if threads is not None:
        check_parallel("threads", threads, 1)
    check_writable(output)


def match_classes(model: Predictor, dataset: CocoDataset) -> tuple[int, ...]:
    """The data set's category id of every label of the model."""
    names = tuple(model.class_names)
    if not names:
        if model.config.num_classes != len(dataset.class_names):
            raise DatasetError(
                f"the model has {model.config.num_classes} classes without names, "
                f"{dataset.annotation_file} has {len(dataset.class_names)}: {', '.join(dataset.class_names)}"
            )
        return dataset.category_ids
    if set(names) != set(dataset.class_names):
        raise DatasetError(
            f"the model's classes are not those of {dataset.annotation_file}.\n"
            f"  only in the model:    {_names(set(names) - set(dataset.class_names))}\n"
            f"  only in the data set: {_names(set(dataset.class_names) - set(names))}\n"
            f"  model's classes:      {', '.join(names)}\n"
            f"  data set's classes:   {', '.join(dataset.class_names)}"
        )
    id_of = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    return tuple(id_of[name] for name in names)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"


def _detect(
    model: Predictor,
    dataset: CocoDataset,
    category_ids: tuple[int, ...],
    indices: list[int],
    batch_size: int,
    threads: int | None,
    progress: bool,
    stop: Callable[[], bool],
    losses: ValidationLosses | None,
) -> tuple[list[dict], dict[str, str], bool, dict[str, list[float]]]:
    """Detections in COCO's results form, the reason for each image that could not be used, whether `stop` let
    it finish, and the images' losses."""

    def read(index: int) -> tuple[Prepared | None, tuple[int, Prepared] | BadImage]:
        try:
            image = model.prepare(read_annotated(dataset, index, model.data.channels))
            return image, (index, image)
        except (ImageError, OSError) as error:
            return None, bad_image(dataset, index, error)

    results: list[dict] = []
    failed: dict[str, str] = {}
    complete = True
    bar = tqdm(
        total=len(indices),
        desc="evaluating",
        unit="img",
        leave=False,
        disable=None if progress else True,
    )
    with bar, closing(model.results(indices, read, batch_size, threads)) as stream:
        for this, found in stream:
            if isinstance(this, BadImage):
                failed[str(dataset.image_path(this.index))] = this.reason
            elif found is not None:
                index, image = this
                results += _coco_results(int(dataset.image_ids[index]), found, category_ids)
                if losses is not None:
                    losses.add(index, image)
            bar.update()
            if stop():
                complete = False
                break
    return results, failed, complete, losses.values() if losses else {}


def _coco_results(image_id: int, found: Detections, category_ids: tuple[int, ...]) -> list[dict]:
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label, _ in found
    ]


def score(dataset: CocoDataset, results: list[dict]) -> Evaluation:
    """COCO metrics of detections in COCO's results form against a data set's annotations."""
    # hotcoco takes no negative ids: places in their order stand for them, which ties are broken by
    image_of = {number: place for place, number in enumerate(sorted(dataset.image_ids.tolist()))}
    label_of = {number: label for label, number in enumerate(dataset.category_ids)}

    def numbered(entry: dict) -> dict:
        places = {"image_id": image_of[entry["image_id"]], "category_id": label_of[entry["category_id"]]}
        return {**entry, **places}

    truth = COCO(
        {
            "images": [{"id": place} for place in image_of.values()],
            "categories": [{"id": label, "name": str(label)} for label in label_of.values()],
            # ids count from 1: a match with annotation 0 could be taken for no match
            "annotations": [{**numbered(one), "id": n} for n, one in enumerate(dataset.entries(), 1)],
        }
    )
    evaluator = COCOeval(truth, truth.load_res([*map(numbered, results)]), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summary_lines()  # computes the statistics
    metrics = dict(zip((*STATISTICS, *RECALLS), map(float, evaluator.stats), strict=True))
    assert evaluator.eval is not None

    precision = evaluator.eval["precision"]  # [IoU thresholds, recalls, classes, areas, max detections]
    per_class = {}
    for label, name in enumerate(dataset.class_names):
        column = precision[:, :, label, 0, -1]
        per_class[name] = (_mean(column), _mean(column[0]))
    return Evaluation(metrics, per_class, evaluator=evaluator)


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
