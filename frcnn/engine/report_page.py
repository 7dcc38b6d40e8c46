"""What `frcnn.engine.analysis` found, and the curves of training runs, as pages and drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frcnn.data.check import Example
from frcnn.data.check_page import drawn
from frcnn.engine.analysis import MEAN
from frcnn.engine.read_log import CURVES, Run
from frcnn.page import page

SHOWN = 12
"""Cases of each kind."""
ORANGE, BLUE = 4, 0
"""Labels that are drawn in these colors."""


@dataclass(frozen=True)
class Chart:
    """Lines over one another: name -> (x, y), both from 0 on. x: the axis's name; bold: the line that is."""

    title: str
    x: str
    lines: dict[str, list[tuple[float, float]]]
    bold: str = ""

    @staticmethod
    def step(most: float, ticks: int) -> float:
        """Between the marks of an axis that ends at `most`: 1, 2 or 5 times a power of ten, so that they are
        `ticks` at most."""
        power = 10.0 ** math.floor(math.log10(most / ticks))
        return next(digit * power for digit in (1, 2, 5, 10) if most / (digit * power) < ticks)


def report_page(title: str, content: dict[str, Any], run: Run) -> str:
    """HTML, see `frcnn.page`. content: what the JSON file has; every number on the page is of it."""
    cases = {kind: content[kind][:SHOWN] for kind in ("label_errors", "mistakes", "misses")}
    images = {
        kind: [(case, drawn(Example(**case), [ORANGE] + [BLUE] * len(case["boxes"][1:]))) for case in some]
        for kind, some in cases.items()
    }
    precision = {
        name: [(place / 100, value) for place, value in enumerate(values)]
        for name, values in content["precision"].items()
    }
    calibration = {
        "measured": [(one["score"], one["precision"]) for one in content["calibration"]],
        "if scores were shares of right ones": [(0.0, 0.0), (1.0, 1.0)],
    }
    drawings = {
        "precision": Chart("precision by recall, IoU 0.5", "recall", precision, MEAN),
        "calibration": Chart("precision by score, IoU 0.5", "score", calibration, "measured"),
    }
    return page("report.html", title=title, found=content, images=images, charts=charts([run]), **drawings)


def charts(runs: Sequence[Run]) -> list[Chart]:
    """One for each of CURVES that a run has, with a line for each run that has it."""
    lines = {name: {run.name: run.curves[name] for run in runs if name in run.curves} for name in CURVES}
    return [Chart(name, "epoch", found) for name, found in lines.items() if found]
