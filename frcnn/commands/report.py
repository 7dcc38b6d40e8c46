"""`frcnn report`, `frcnn compare`, `frcnn plot`: how a training went, and why its model fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from frcnn.checked import OptionError
from frcnn.commands.data import Pages
from frcnn.commands.model import (
    CHECKPOINTS,
    Annotations,
    BatchSize,
    Device,
    Images,
    Model,
    Precision,
    RunCode,
    Weights,
    default,
    files_of,
    load_detector,
)
from frcnn.files import check_keeps, check_writable, replace_text

if TYPE_CHECKING:
    from frcnn.engine.read_log import Run


def report(
    model: Positional[Model],
    annotations: Positional[Annotations],
    images: Positional[Images],
    html: Annotated[Path, arg(metavar="FILE")],
    json_file: Pages = None,
    run: Annotated[Path | None, default("DIR", "the checkpoint's, if it has a log")] = None,
    min_score: float = 0.3,
    weights: Weights = None,
    batch_size: BatchSize = 4,
    precision: Precision = "float32",
    device: Device = None,
    run_code: RunCode = False,
) -> int:
    """Evaluate a model and show why it fails: AP, confusion, kinds of errors, calibration, the worst cases.

    Args:
        html: The page to write; it needs no other file. It takes the package jinja2.
        json_file: Write the page's numbers, and more cases, to this file.
        run: Folder of the training run whose curves are shown.
        min_score: Leave detections below this score out of confusion and kinds of errors.
    """
    from frcnn.data import load_dataset
    from frcnn.engine.analysis import analyze
    from frcnn.engine.evaluate import check_options, evaluate
    from frcnn.engine.read_log import Run, read_run
    from frcnn.engine.report_page import report_page

    if not 0 <= min_score <= 1:
        raise OptionError(f"min_score={min_score}: it is a number from 0 to 1")
    _check_page(html, json_file)
    if json_file is not None and json_file.resolve() == html.resolve():
        raise OptionError(f"json_file={json_file} is the page's file too: name another")
    check_options(batch_size, None, None)
    beside = Path(model).parent
    if run is None and Path(model).suffix in CHECKPOINTS and (beside / "log.jsonl").exists():
        run = beside
    trained = Run(model) if run is None else read_run(run, str(run))
    dataset = load_dataset(annotations, images)
    check_keeps([*files_of(model, weights), *trained.files, *dataset.files()], html, json_file)
    result = evaluate(
        load_detector(model, weights, device, precision, run_code), dataset, batch_size=batch_size
    )
    found = asdict(analyze(dataset, result, min_score))
    classes = {f"AP of {name}": figures["AP"] for name, figures in found["per_class"].items()}
    trained = replace(trained, figures={**trained.figures, **found["metrics"], **classes})
    content = {"model": model, "annotations": str(annotations), "failed": result.failed, **found}
    content["classes"], content["run"] = dataset.class_names, asdict(trained)
    replace_text(html, report_page(f"{Path(model).name} on {annotations.name}", content, trained))
    if json_file is not None:
        replace_text(json_file, json.dumps(content, indent=1) + "\n")
    print(replace(result, per_class={}).table(), end="\n\n")
    for name, error in found["errors"].items():
        print(f"{name:<14} {error['count']:5} {error['share']:6.1%}")
    print(f"\npage  {html}")
    return 1 if result.failed else 0


Runs = Annotated[
    tuple[str, ...],
    arg(
        metavar="RUN [RUN …]",
        help="Folders of runs, logs (ours, MMDetection's 2.x or 3.x), JSON files of reports, or recipes, "
        "whose published logs are downloaded.",
        help_behavior_hint="(required)",
    ),
]


def compare(runs: Positional[Runs], html: Pages = None) -> None:
    """Print runs side by side: last and best AP, of each class where reports tell it, and what was set.

    Args:
        html: Write the curves over each other to this page. It takes the package jinja2.
    """
    from frcnn.engine.read_log import CURVES
    from frcnn.engine.report_page import charts
    from frcnn.page import page

    if len(set(runs)) < 2:
        raise OptionError("name at least two runs")
    if html is not None:
        _check_page(html)
    read = _read(runs, html)
    if not any(sum(name in run.curves or name in run.figures for run in read) > 1 for name in CURVES):
        raise ValueError("the runs have nothing in common: no two tell of the same loss or metric")
    rows = [["", *(run.name for run in read)]]
    for name in dict.fromkeys(name for run in read for name in run.figures):
        rows.append([name, *(_shown(run.figures.get(name)) for run in read)])
    for name in dict.fromkeys(name for run in read for name in run.settings):
        if len({str(run.settings.get(name)) for run in read if run.settings}) > 1:
            rows.append([name, *(str(run.settings.get(name, "-")) for run in read)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if html is not None:
        replace_text(html, page("curves.html", title="Runs compared", rows=rows, charts=charts(read)))


def plot(
    logs: Positional[Runs],
    output: Annotated[Path, arg(metavar="FILE", help="Ending in .svg or .html.")],
) -> None:
    """Draw the curves of training logs: losses, learning rate, AP. It takes the package jinja2."""
    from frcnn.engine.report_page import charts
    from frcnn.page import page

    if not logs or output.suffix not in (".svg", ".html"):
        raise OptionError(f"name at least one log, and an output ending in .svg or .html, not {output}")
    _check_page(output)
    drawn = charts(_read(logs, output))
    if not drawn:
        raise ValueError("there is nothing to draw: these reports have no curves of a run")
    replace_text(output, page(f"curves{output.suffix}", title="Training", rows=[], charts=drawn))
    print(output)


def _check_page(*files: Path | None) -> None:
    """Find out before hours of work whether a page can be made there."""
    from frcnn.page import page

    check_writable(*files)
    page("base.html", title="")


def _read(words: Sequence[str], output: Path | None) -> list[Run]:
    from frcnn.checkpoint.download import checkpoint_addresses, download
    from frcnn.engine.read_log import read_run
    from frcnn.zoo.recipes import list_recipes, recipe
    from frcnn.zoo.table import log_path

    runs = []
    for word in dict.fromkeys(words):
        path = Path(word)
        if not path.exists():
            if word not in list_recipes():
                raise FileNotFoundError(f"{word}: no such file or folder, nor a recipe with a published log")
            path = download(checkpoint_addresses(log_path(recipe(word))))
        runs.append(read_run(path, word))
    check_keeps([file for run in runs for file in run.files], output)
    return runs


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
