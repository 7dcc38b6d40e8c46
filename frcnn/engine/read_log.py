"""What a training run tells of itself: its log, ours or MMDetection's 2.x or 3.x, and its settings.

A log is lines of JSON. Ours, and those of 2.x, have a mode, an epoch and an iter inside it; those of 3.x have
a step, which counts steps in lines of training and epochs in those of validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frcnn.checkpoint.plain import to_plain
from frcnn.zoo.recipes import recipe

CURVES = ("loss", "val_loss", "lr", "bbox_mAP", "bbox_mAP_50", "bbox_mAP_75")
LOGS = ("log.jsonl", "*.log.json", "vis_data/scalars.json", "*/vis_data/scalars.json")
"""Where a run's folder may have one."""

Curves = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Run:
    """curves: name of CURVES -> (epoch, value), in order. figures: epochs, steps, last and best metrics; of a
    report also AP of each class. settings: of recipe.json, by dotted names. files: what was read."""

    name: str
    curves: Curves = field(default_factory=dict)
    figures: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def read_run(path: Path, name: str) -> Run:
    """A run's folder, its log alone, or the JSON file of a report.

    Raises ValueError where that holds none of these, OSError where it cannot be read.
    """
    if path.is_dir():
        logs = [log for pattern in LOGS for log in sorted(path.glob(pattern))[-1:]]
        if not logs:
            raise ValueError(f"{path}: the folder has no training log, such as {', '.join(LOGS)}")
        run, file = read_run(logs[0], name), path / "recipe.json"
        if file.exists():
            run.files.append(str(file))
            run.settings.update(_leaves(to_plain(recipe(file))))
        return run
    lines = list(_objects(path.read_text(encoding="utf-8", errors="replace")))
    if len(lines) == 1 and isinstance(lines[0].get("run"), dict):
        told = lines[0]["run"]
        try:
            curves = {key: [(x, y) for x, y in points] for key, points in told["curves"].items()}
            figures = {key: value for key, value in told["figures"].items() if value is not None}
            numbers = [number for points in curves.values() for point in points for number in point]
            if not all(map(_is_number, [*numbers, *figures.values()])):
                raise ValueError("numbers that are none")
            return Run(name, curves, figures, dict(told["settings"]), [str(path)])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path}: its run is none that `frcnn report` wrote; write it anew") from None
    curves, figures = _curves(lines)
    if not curves:
        raise ValueError(
            f"{path} is no training log: known are frcnn's log.jsonl, MMDetection's .log.json (2.x) and "
            "scalars.json (3.x), and what `frcnn report --json-file` writes"
        )
    return Run(name, curves, figures, files=[str(path)])


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """A file that is one object, or its lines; those that were cut short are left out."""
    for part in [text] if text.startswith("{\n") else text.splitlines():
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _curves(lines: Sequence[dict[str, Any]]) -> tuple[Curves, dict[str, float | None]]:
    """The curves and figures of a log's lines."""
    modes = any(line.get("mode") in ("train", "val") for line in lines)
    wanted = {"mode", "epoch", "iter"} if modes else {"step"}
    rows = []
    for line in (line for line in lines if wanted <= line.keys()):
        numbers = {name.rpartition("/")[2]: value for name, value in line.items() if _is_number(value)}
        if wanted - {"mode"} <= numbers.keys():
            rows.append((line["mode"] == "train" if modes else "loss" in numbers, numbers))
        if "bbox_mAP_copypaste" in line:  # where 2.x evaluates, iter counts images
            numbers.pop("iter", None)
    train = [row for training, row in rows if training]
    if modes:
        inner = [row["iter"] for _, row in rows if "iter" in row]
    elif any("epoch" in row for row in train):
        inner = [row["step"] / row["epoch"] for row in train if row.get("epoch", 0) > 0]
    else:  # the last validation is the end of training
        ends = [row["step"] for training, row in rows if not training]
        inner = [row["step"] / max([1, *ends]) for row in train]
    per_epoch, last = max([0, *inner]) or 1, 0.0
    curves: Curves = {}
    for training, row in rows:
        epoch = row["epoch" if modes else "step"]
        if training:
            last = max(last, step := (epoch - 1) * per_epoch + row["iter"] if modes else epoch)
            epoch = step / per_epoch
        for name in CURVES:
            if name in row:
                curves.setdefault(name, []).append((epoch, row[name]))
    figures: dict[str, float | None] = {"epochs": round(last / per_epoch, 2), "steps": round(last)}
    for name in CURVES[3:]:
        if values := [value for _, value in curves.get(name, [])]:
            figures |= {name: values[-1], f"best {name}": max(values)}
    return curves, figures


def _is_number(value: Any) -> bool:
    """Whether a value is one, and of a size that can be reckoned with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e100 < value < 1e100


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf for key in value for name, leaf in _leaves(value[key], f"{path}.{key}".strip(".")).items()
    }
