"""A result as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import frcnn
from frcnn.config import Published

NOT_MEASURED = "not yet measured"
PUBLISHED = "published (one V100)"
Row = Mapping[str, Any]


def markdown(result: Row) -> str:
    """The whole report."""
    rows = [row for row in result["recipes"] if "error" not in row]
    parts = [_heading(result), _inference_table(rows, result)]
    if any("training" in row for row in rows):
        parts.append(_training_table(rows, result))
    if any("stages" in row for row in rows):
        parts += [_stage_table(rows), _roofline(next(row for row in rows if "stages" in row))]
    parts += [_drift_table(rows, result), _notes(rows, result)]
    failed = [row for row in result["recipes"] if "error" in row]
    if failed:
        lines = [f"- {row['name']}: {row['error'].splitlines()[0]}" for row in failed]
        parts.append("## Failed\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def published(name: str) -> Published | None:
    """What the zoo publishes for a recipe; None for one that is not of the zoo."""
    return frcnn.recipe(name).published if name in frcnn.list_recipes() else None


def peer_names(rows: Sequence[Row]) -> list[str]:
    """The peers' columns, in order of appearance."""
    names = [name for row in rows for name in row["counts"] if name != "ours"]
    return list(dict.fromkeys(names))


def _heading(result: Row) -> str:
    machine, settings = result["machine"], result["settings"]
    height, width = settings["size"]
    gpu = machine.get("gpu", f"none (GPU columns: {NOT_MEASURED})")
    return "\n".join(
        [
            f"# {settings['precision']}, {settings['mode']}, {machine['name']}, {result['date']}",
            "",
            f"- machine: {machine['cpu']}, {machine['threads']} threads, "
            f"{', '.join(machine['vector_units'])}; GPU: {gpu}; torch {machine['torch']}; "
            f"commit {machine['commit']}",
            f"- load average when it began: {machine['load_average']} "
            f"(a quiet machine is near 0: with more, take the ratios, not the times)",
            f"- input: {result['images']}, {width}x{height}; weights: {result['weights']}",
            "- time: from the network's input to detections in pixels of the image, post-processing "
            "included, loading and preprocessing excluded; medians, ours and the peer taking turns by single "
            "iterations",
            f"- peer: {result['peer']}",
        ]
    )


def _inference_table(rows: Sequence[Row], result: Row) -> str:
    gpu, peers = "gpu" in result["machine"], peer_names(rows)
    parts = ["## Detection"]
    for index, batch in enumerate(result["settings"]["batches"]):
        header = ["recipe", "params M", "GFLOP", "fps", "median ms", "p95 ms", "peak MB"]
        header += [column for peer in peers for column in (f"{peer} fps", "peak MB", "ours / peer")]
        if batch == 1:
            header += ["V100 fps (published)", "ours / published", "box AP", "box AP (published)"]
        header += [] if gpu else ["GPU fps", "GPU peak MB"]
        lines = []
        for row in rows:
            timing = row["inference"][index]
            line = [row["name"], f"{row['parameters'] / 1e6:.1f}", f"{row['gflop']:.0f}"]
            line += _timing(timing["ours"])
            for peer in peers:
                line += _against(timing["ours"], timing.get(peer))
            if batch == 1:
                line += _against_published(row, timing["ours"]["fps"], at_published_size(result))
            lines.append(line + ([] if gpu else [NOT_MEASURED] * 2))
        parts += [f"Batch {batch}:", table(header, lines)]
    samples = [timing["ours"]["samples"] for row in rows for timing in row["inference"]]
    parts.append(f"{min(samples, default=0)} to {max(samples, default=0)} iterations per median.")
    return "\n\n".join(parts)


def _timing(timing: Row) -> list[str]:
    return [
        number(timing["fps"]),
        number(timing["median_ms"]),
        number(timing["p95_ms"]),
        megabytes(timing["peak_bytes"]),
    ]


def _against(ours: Row, peer: Row | None) -> list[str]:
    if peer is None:
        return ["-", "-", "-"]
    ratio = peer["median_ms"] / ours["median_ms"]
    return [number(peer["fps"]), megabytes(peer["peak_bytes"]), f"{ratio:.2f}x"]


def at_published_size(result: Row) -> bool:
    """Whether the images are as large as the published speeds': otherwise no ratio to those is due."""
    return sorted(result["settings"]["size"]) == [800, 1333]


def _against_published(row: Row, fps: float, comparable: bool) -> list[str]:
    figures = published(row["name"])
    if figures is None:
        return ["-"] * 4
    return [
        optional(figures.fps, lambda value: f"{value:.1f}"),
        optional(figures.fps if comparable else None, lambda value: f"{fps / value:.3f}x"),
        optional(row.get("box_ap"), lambda value: f"{value:.1f}", "needs --coco and --weights"),
        f"{figures.box_ap:.1f}",
    ]


def _training_table(rows: Sequence[Row], result: Row) -> str:
    gpu, peers = "gpu" in result["machine"], peer_names(rows)
    header = ["recipe", "step ms", "images/s", "peak MB"]
    header += [column for peer in peers for column in (f"{peer} images/s", "peak MB", "ours / peer")]
    header += ["GB on a V100 (published)"] + ([] if gpu else ["GPU images/s", "GPU peak MB"])
    lines = []
    for row in rows:
        if "training" not in row:
            continue
        ours, figures = row["training"]["ours"], published(row["name"])
        line = [row["name"], number(ours["median_ms"]), number(ours["fps"]), megabytes(ours["peak_bytes"])]
        for peer in peers:
            line += _against(ours, row["training"].get(peer))
        line.append(optional(figures and figures.memory_gb, lambda value: f"{value:.1f}"))
        lines.append(line + ([] if gpu else [NOT_MEASURED] * 2))
    text = "Forward, backward and SGD update at 2 images, without loading."
    return "\n\n".join(["## Training step", text, table(header, lines)])


def _stage_table(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if "stages" in row]
    stages = [stage["stage"] for stage in rows[0]["stages"]]
    lines = [
        [
            row["name"],
            *(f"{number(stage['ms'])} ({stage['share_of_floor']:.0%})" for stage in row["stages"]),
        ]
        for row in rows
    ]
    text = (
        "Milliseconds, measured, and in brackets what share of them the predicted floor is: the least time "
        "that the stage's operations (at the rate of a large matrix product) and bytes (at the bandwidth of "
        "a large copy) take here."
    )
    return "\n\n".join(["## Stages", text, table(["recipe", *stages], lines)])


def _roofline(row: Row) -> str:
    lines = [
        [
            stage["stage"],
            number(stage["gflop"]),
            number(stage["mbyte"]),
            number(stage["floor_ms"]),
            number(stage["ms"]),
            f"{stage['share_of_floor']:.0%}",
        ]
        for stage in row["stages"]
    ]
    floor_ms, ms = (sum(stage[key] for stage in row["stages"]) for key in ("floor_ms", "ms"))
    gflop, mbyte = (sum(stage[key] for stage in row["stages"]) for key in ("gflop", "mbyte"))
    share = f"{floor_ms / ms:.0%}"
    lines.append(["whole", number(gflop), number(mbyte), number(floor_ms), number(ms), share])
    rates = row["rates"]
    return "\n\n".join(
        [
            f"### Roofline of {row['name']}",
            f"Measured in the same run: {rates['matrix'] / 1e9:.0f} GFLOP/s in matrix products, "
            f"{rates['copy'] / 1e9:.1f} GB/s in copies (reads plus writes).",
            table(
                [
                    "stage",
                    "GFLOP (counted)",
                    "MB (counted)",
                    "floor ms (predicted)",
                    "ms (measured)",
                    "floor / measured",
                ],
                lines,
            ),
        ]
    )


def _drift_table(rows: Sequence[Row], result: Row) -> str:
    header = ["recipe", "matched", "score drift mean", "max", "box drift px mean", "max"]
    header += ["proposals", "detections"]
    lines = []
    for row in rows:
        drift, counts = row["drift"], row["counts"]["ours"]
        lines.append(
            [
                row["name"],
                f"{drift['matched']:.1%}",
                *(f"{drift[key]:.1e}" for key in ("mean_score_drift", "max_score_drift")),
                *(f"{drift[key]:.2g}" for key in ("mean_box_drift", "max_box_drift")),
                f"{counts['proposals']:.0f}",
                f"{counts['detections']:.0f}",
            ]
        )
    text = (
        f"Detections of the fast detector ({result['settings']['precision']}, {result['settings']['mode']}) "
        "against the plain model's in float32 on the same images, and what passes through it per image."
    )
    return "\n\n".join(["## Drift and counts", text, table(header, lines)])


def _notes(rows: Sequence[Row], result: Row) -> str:
    peers = peer_names(rows)
    lines = [
        "- peak MB: on a CPU how far the process's resident memory rose above its size with all libraries "
        "loaded (weights included), on a GPU the most that tensors held.",
        "- GFLOP: a multiply-add is two; convolutions, linear layers, RoIAlign, NMS.",
    ]
    for peer in peers:
        counts = [row["counts"][peer] for row in rows if peer in row["counts"]]
        found = f"{counts[0]['detections']:.0f} detections"
        if "proposals" in counts[0]:  # an exported file has its detections alone
            found = f"{counts[0]['proposals']:.0f} proposals and {found}"
        lines.append(f"- {peer}: {found} per image with the same weights.")
    start = result.get("start_up")
    if start:
        lines.append(
            f"- start-up: import torch {start['torch']:.2f} s, then import frcnn {start['frcnn']:.3f} s, "
            f"then the detector's modules {start['detector']:.2f} s; first prediction of a loaded model "
            f"{start['first_prediction']:.2f} s."
        )
    return "## Notes\n\n" + "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def megabytes(value: float | None) -> str:
    return "needs Linux" if value is None else f"{value / 1e6:.0f}"


def optional(value: Any, render: Callable[[Any], str], missing: str = "-") -> str:
    return missing if value is None else render(value)


def plot(result: Row, path: Path) -> None:
    """fps of every recipe as bars, ours beside the peer's and, at its size, the published speed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["recipes"] if "error" not in row]
    speeds = {
        subject: [row["inference"][0].get(subject, {}).get("fps") for row in rows]
        for subject in ("ours", *peer_names(rows))
    }
    if at_published_size(result):
        figures = [published(row["name"]) for row in rows]
        speeds[PUBLISHED] = [figure and figure.fps for figure in figures]
    thickness = 0.8 / len(speeds)
    figure, axes = plt.subplots(figsize=(9, 2 + 0.25 * len(rows) * len(speeds)), layout="constrained")
    for index, (subject, values) in enumerate(speeds.items()):
        offset = (index - (len(speeds) - 1) / 2) * thickness
        measured = [(row + offset, value) for row, value in enumerate(values) if value is not None]
        if measured:
            positions, lengths = zip(*measured, strict=True)
            color = "lightgray" if subject == PUBLISHED else None
            bars = axes.barh(positions, lengths, thickness, label=subject, color=color)
            axes.bar_label(bars, map(number, lengths), padding=3, fontsize="small")
    settings, machine = result["settings"], result["machine"]
    height, width = settings["size"]
    axes.set_yticks(range(len(rows)), [row["name"].removeprefix("faster_rcnn_") for row in rows])
    axes.invert_yaxis()  # in the order of the table, from the top
    axes.margins(x=0.1, y=0.02)  # room for the number behind the longest bar
    axes.set_xlabel(f"images per second ({width}x{height}, batch {settings['batches'][0]})")
    axes.set_title(f"Faster R-CNN, {settings['precision']} {settings['mode']}, {machine['name']}")
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if rows:
        figure.legend(loc="outside lower center", ncols=min(4, len(speeds)))  # the width of the figure
    figure.savefig(path, dpi=120)
    plt.close(figure)
