"""``frcnn verify``: recompute MMDetection's numbers on this machine and print a certificate.

A case (`frcnn.zoo.reference_case`) is one of the package's small ones, or of a folder of full ones.

Every case is checked in the form that trains and evaluates ("plain", norms folded as it runs). Where it has
detections it is also checked in the frozen form that detects ("folded", see `frcnn.inference.fold`) and,
where asked for, as an exported file.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from frcnn.checked import check_known
from frcnn.config import Recipe
from frcnn.detector import FasterRCNN
from frcnn.export.info import Format
from frcnn.inference.fold import fold
from frcnn.inference.hardware import float32_arithmetic
from frcnn.preprocess import stack_pixels
from frcnn.structures import Batch
from frcnn.zoo.reference_case import (
    CASES,
    case_batch,
    case_names,
    case_recipe,
    draw_weights,
    load_case,
    without_sampling,
)

FEATURE_TOLERANCE = 2e-5
"""Largest difference of an array, relative to its largest magnitude."""
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
"""Relative difference of a parameter's gradient norm, and of its first entries relative to that norm."""
MATCH_IOU = 0.99
MATCH_SCORE = 1e-4
UNMATCHED = 1 / 1000

Boxes = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Boxes, scores, and labels where there are any."""


@dataclass(frozen=True)
class Result:
    """One line of the certificate: largest relative errors, and boxes that found no partner.

    Errors are None and counts 0 for what is not compared: the folded form does not train.
    """

    case: str
    form: Literal["plain", "folded"] | Format = "plain"
    features: float | None = None
    losses: float | None = None
    gradients: float | None = None
    proposals: int = 0
    proposals_missed: int = 0
    detections: int = 0
    detections_missed: int = 0
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether every number lies within its tolerance (NaN does not)."""
        return (
            (self.features is None or self.features <= FEATURE_TOLERANCE)
            and (self.losses is None or self.losses <= LOSS_TOLERANCE)
            and (self.gradients is None or self.gradients <= GRADIENT_TOLERANCE)
            and self.proposals_missed <= UNMATCHED * self.proposals
            and self.detections_missed <= UNMATCHED * self.detections
            and not self.remark
        )


def verify(
    cases: Sequence[str] = (),
    device: torch.device | str = "cpu",
    reference: Path | str | None = None,
    format: Format | None = None,
) -> bool:
    """Recompute cases, print the certificate, and say whether all passed.

    Args:
        cases: names of cases; default: all that are there.
        device: where to compute; on a GPU in full float32, without TF32.
        reference: a folder of ``<case>.npz`` files; default: the cases of the package.
        format: also check the detections of each case's network as an exported file of this format.

    Raises:
        FileNotFoundError: the folder is not there, or holds no case.
        OptionError: there is no case of that name; the message names the nearest.
    """
    folder = CASES if reference is None else Path(reference)
    known = case_names(folder)
    if not known:
        raise FileNotFoundError(f"{folder}: no case at all (a .npz file) in this folder")
    check_known("case", cases, known)
    print(_heading(torch.device(device)), flush=True)
    failed = []
    names = cases or known
    for name in names:
        for result in verify_case(folder / f"{name}.npz", device, format):
            print(_line(result), flush=True)
            if not result.passed:
                failed.append(f"{result.case} ({result.form})")
    print(f"FAILED: {', '.join(failed)}" if failed else f"all {len(names)} cases pass in every form")
    return not failed


def verify_case(path: Path, device: torch.device | str = "cpu", format: Format | None = None) -> list[Result]:
    """Recompute one case in each form and compare; arrays that the file does not hold are not compared."""
    case = load_case(path)
    entry = case_recipe(path.stem)
    model = FasterRCNN(without_sampling(entry), entry.data)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(draw_weights(shapes, int(case["seed"]), float(case["input_std"])))
    device = torch.device(device)
    model.to(device)
    batch = case_batch(case, entry).to(device)
    if batch.images.shape != tuple(case["batch_shape"]):
        return [Result(path.stem, remark=f"the batch has shape {tuple(batch.images.shape)}")]
    with float32_arithmetic("float32", device):
        plain, folded = Result(path.stem), []
        if "fpn0" in case:
            plain = _compare_inference(model.eval(), case, batch, plain)
            folded = [_compare_inference(fold(model), case, batch, Result(path.stem, "folded"))]
            if format is not None:
                folded.append(_compare_exported(path.stem, entry, model, case, format))
        return [_compare_training(model.train(), case, batch, plain), *folded]


@torch.no_grad()
def _compare_inference(
    model: FasterRCNN, case: Mapping[str, np.ndarray], batch: Batch, result: Result
) -> Result:
    features = model.neck(model.backbone(batch.images))
    logits, deltas = model.rpn_head(features)
    sizes = torch.tensor(batch.sizes, dtype=torch.float32, device=batch.images.device)
    boxes, scores = model.rpn_head.propose(logits, deltas, sizes)
    step = int(case.get("decimation", 1))
    error = 0.0
    for level, (feature, logit, delta) in enumerate(zip(features, logits, deltas, strict=True)):
        outputs = {"fpn": feature[:, ::32], "rpn_cls": logit, "rpn_reg": delta}
        for name, output in outputs.items():
            if f"{name}{level}" in case:
                error = _worse(error, _relative(output[..., ::step, ::step], case[f"{name}{level}"]))
    proposals = proposals_missed = 0
    images = range(len(batch.sizes))
    for index in images:
        if f"proposals{index}" in case:
            present = scores[index] > -torch.inf
            rows = case[f"proposals{index}"]
            proposals += len(rows)
            proposals_missed += unmatched(
                (rows[:, :4], rows[:, 4], None),
                (_array(boxes[index][present]), _array(scores[index][present].sigmoid()), None),
            )
    detected = [one.to_numpy() for one in model.detect(batch, _factors(case, images))]
    found = {i: (one["boxes"], one["scores"], one["labels"]) for i, one in enumerate(detected)}
    result = replace(result, features=error, proposals=proposals, proposals_missed=proposals_missed)
    return _count_detections(case, found, result)


def _compare_exported(
    name: str, entry: Recipe, network: FasterRCNN, case: Mapping[str, np.ndarray], format: Format
) -> Result:
    from frcnn.export.export import export_for
    from frcnn.export.info import ExportError

    model = FasterRCNN(entry.model, entry.data)  # detection alone, with the recipe's training settings
    model.load_state_dict(network.state_dict())
    batch, result = case_batch(case, entry), Result(name, format)
    size = (batch.images.shape[2], batch.images.shape[3])
    images = range(len(batch.sizes))
    pixels = stack_pixels([torch.from_numpy(case[f"image{index}"]) for index in images], len(images), size)
    inputs = torch.tensor(batch.sizes).float(), torch.tensor(_factors(case, images))
    try:
        outputs = export_for(model.eval(), format, size, (pixels, *inputs))
    except ExportError as error:
        return replace(result, remark=str(error))
    boxes, scores, labels, counts = (output.numpy() for output in outputs)
    found = {i: (boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts)}
    return _count_detections(case, found, result)


def _factors(case: Mapping[str, np.ndarray], images: range) -> list[tuple[float, float]]:
    factors = [case[f"scale_factor{index}"] for index in images]
    return [(float(x), float(y)) for x, y in factors]


def _count_detections(case: Mapping[str, np.ndarray], found: Mapping[int, Boxes], result: Result) -> Result:
    count = missed = 0
    for index, ours in found.items():
        if f"det_boxes{index}" in case:
            wanted = case[f"det_boxes{index}"], case[f"det_scores{index}"], case[f"det_labels{index}"]
            count += len(wanted[0])
            missed += unmatched(wanted, ours)
    return replace(result, detections=count, detections_missed=missed)


def _compare_training(
    model: FasterRCNN, case: Mapping[str, np.ndarray], batch: Batch, result: Result
) -> Result:
    losses = model(batch)
    sum(losses.values()).backward()
    loss_error = 0.0
    for name, loss in losses.items():
        wanted = float(case[f"train_{name}"])
        loss_error = _worse(loss_error, abs(float(loss.detach()) - wanted) / max(abs(wanted), 1e-12))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = [str(name) for name in case["grad_names"]]
    if set(names) != set(gradients):
        return replace(
            result,
            losses=loss_error,
            remark=f"gradients of {_some(set(names) ^ set(gradients))} on one side only",
        )
    gradient_error = 0.0
    for name, norm, first in zip(names, case["grad_norms"], case["grad_first8"], strict=True):
        gradient = _array(gradients[name].double().flatten())
        scale = max(float(norm), 1e-12)
        gradient_error = _worse(gradient_error, abs(float(np.linalg.norm(gradient)) - float(norm)) / scale)
        entries = gradient[:8]
        gradient_error = _worse(gradient_error, float(np.abs(entries - first[: len(entries)]).max()) / scale)
    return replace(result, losses=loss_error, gradients=gradient_error)


def unmatched(wanted: Boxes, ours: Boxes) -> int:
    """Boxes without a partner, on the side that has more of them: (boxes, scores, labels or None) each.

    Partners have IoU > 0.99, equal labels and scores within 1e-4; every box has at most one.
    """
    boxes, scores, labels = wanted
    our_boxes, our_scores, our_labels = ours
    free = np.ones(len(our_boxes), bool)
    matched = 0
    for index in range(len(boxes)):
        fits = free & (np.abs(our_scores - scores[index]) < MATCH_SCORE)
        if our_labels is not None and labels is not None:
            fits &= our_labels == labels[index]
        candidates = np.flatnonzero(fits)
        if len(candidates):
            overlaps = _iou(boxes[index], our_boxes[candidates])
            best = int(overlaps.argmax())
            if overlaps[best] > MATCH_IOU:
                free[candidates[best]] = False
                matched += 1
    return max(len(boxes), len(our_boxes)) - matched


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    box, boxes = box.astype(np.float64), boxes.astype(np.float64)
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(min=0).prod(1)
    total = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    return shared / np.maximum(total, 1e-12)


def _relative(ours: Tensor, wanted: np.ndarray) -> float:
    values = _array(ours)
    if values.shape != wanted.shape:
        return float("inf")
    scale = max(float(np.abs(wanted).max()), 1e-12)
    return float(np.abs(values.astype(np.float64) - wanted).max()) / scale


def _worse(error: float, other: float) -> float:
    """The larger of two errors; NaN is the largest."""
    return error if math.isnan(error) or other <= error else other


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _heading(device: torch.device) -> str:
    from frcnn import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return (
        f"frcnn {__version__}, PyTorch {torch.__version__}, {device} ({name or platform.machine()}), "
        f"{date.today().isoformat()}; reference: MMDetection 3.3.0\n"
        f"{'case':<24}{'form':<8}{'features':>10}{'losses':>10}{'gradients':>11}{'proposals':>16}{'detections':>16}\n"
        f"{'tolerance':<32}{FEATURE_TOLERANCE:>10.0e}{LOSS_TOLERANCE:>10.0e}{GRADIENT_TOLERANCE:>11.0e}"
        f"{'0.1% missed':>16}{'0.1% missed':>16}"
    )


def _line(result: Result) -> str:
    def boxes(count: int, missed: int) -> str:
        return f"{count}, {missed} missed" if count else "-"

    def error(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    return (
        f"{result.case:<24}{result.form:<8}{error(result.features):>10}{error(result.losses):>10}"
        f"{error(result.gradients):>11}"
        f"{boxes(result.proposals, result.proposals_missed):>16}"
        f"{boxes(result.detections, result.detections_missed):>16}"
        f"  {'pass' if result.passed else 'FAIL'} {result.remark}".rstrip()
    )
