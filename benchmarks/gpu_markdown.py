"""The report of benchmarks/gpu_report.py as Markdown. Needs Python alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]
TAIL_LINES, TAIL_CHARACTERS = 30, 4000
SAYS_IT = re.compile(r"=+ .*(passed|failed|error).* =+|\d+ (passed|failed).*|=+ (ERROR|RACECHECK) SUMMARY.*")


def emulated(machine: Row) -> bool:
    return str(machine.get("card", "")).startswith("emulated")


def report(result: Row, logs: Mapping[str, str], operators: str) -> str:
    """result: as gpu_report.Report collects it; logs: what each part printed; operators: ops.py's table."""
    machine, parts = result["machine"], result["parts"]
    blocks = [heading(result), outcomes(parts, logs)]
    if logs.get("verify", "").strip():
        blocks.append("## Verification\n\n" + code(logs["verify"]))
    if result["sweep"]:
        blocks += [sweep_tables(result["sweep"], scale_of(machine))]
    if operators:
        blocks.append(operators.replace("# Operators", "## Operators", 1).strip())
    for part in parts:
        if not part["passed"] and part["result"] != "running" and logs.get(part["name"], "").strip():
            blocks.append(f"## The end of what {part['name']} printed\n\n" + code(tail(logs[part["name"]])))
    return "\n\n".join(blocks) + "\n"


def scale_of(machine: Row) -> str:
    return "emulated device: these are no GPU's figures" if emulated(machine) else str(machine["card"])


def heading(result: Row) -> str:
    machine = result["machine"]
    if not machine:
        return f"# GPU report, {result['date']}\n\nThe machine has not said yet what it is."
    card = "emulated device: no figure below is a GPU's" if emulated(machine) else machine["card"]
    missing = ", ".join(machine["missing"]) or "nothing"
    lines = [
        f"# GPU report: {card}, {result['date']}",
        "",
        f"- card: {machine['card']}, compute capability {machine['capability']}, "
        f"{machine['memory'] / 1e9:.0f} GB; driver and clocks: {machine.get('nvidia_smi') or 'unknown'}",
        f"- torch {machine['torch']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, "
        f"Python {machine['python']}, {machine['cores']} cores; commit {result['commit'] or 'unknown'}",
        f"- packages missing there: {missing}",
    ]
    if result["rehearsal"]:
        lines.append("- **a rehearsal**: small sizes, so the times mean nothing")
    return "\n".join(lines)


def outcomes(parts: Sequence[Row], logs: Mapping[str, str]) -> str:
    rows = []
    for part in parts:
        times = [f"{part['seconds']:.0f}", f"{part['limit']:.0f}"]
        rows.append([part["name"], part["result"], *times, said(logs.get(part["name"], ""))])
    return "## Parts\n\n" + table(["part", "result", "seconds", "limit", "it says"], rows)


def said(log: str) -> str:
    """The line of a log that sums it up."""
    lines = [line.strip(" =") for line in log.splitlines() if SAYS_IT.fullmatch(line.strip())]
    return "; ".join(lines[-2:])


def sweep_tables(rows: Sequence[Row], where: str) -> str:
    """Detection: a row for each backbone, precision and mode; training below it; then what failed."""
    done = [row for row in rows if "error" not in row]
    detection: dict[tuple, dict] = {}
    for row in done:
        if row["mode"] != "training":
            key = (short(row["recipe"]), row["precision"], row["mode"])
            detection.setdefault(key, {})[row["batch"]] = row
    batches = sorted({batch for found in detection.values() for batch in found})
    header = ["backbone", "precision", "mode"]
    header += [f"batch {batch}: {what}" for batch in batches for what in ("ms", "images/s", "peak MB")]
    lines = []
    for key, found in detection.items():
        lines.append([*key, *(cell for batch in batches for cell in cells(found.get(batch)))])
    training = [
        [short(row["recipe"]), row["precision"], str(row["batch"]), *cells(row)]
        for row in done
        if row["mode"] == "training"
    ]
    failed = [
        f"- {short(row['recipe'])}, {row['precision']}, {row['mode']}, batch {row['batch']}: {row['error']}"
        for row in rows
        if "error" in row
    ]
    parts = [
        f"## Detection ({where})\n\nFrom the network's input to boxes in the image's pixels; medians. Peak: "
        "the most that tensors held from the first call on, weights and the choice of algorithms included.",
        table(header, lines),
        "## Training step\n\nForward, backward and update, without loading.",
        table(["backbone", "precision", "images", "ms", "images/s", "peak MB"], training),
    ]
    return "\n\n".join(parts + (["### Failed cases", "\n".join(failed)] if failed else []))


def short(recipe: object) -> str:
    return str(recipe).removeprefix("faster_rcnn_").removesuffix("_fpn_1x_coco")


def cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-"] * 3
    return [f"{row['median_ms']:.2f}", f"{row['fps']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def tail(log: str) -> str:
    return "\n".join(log.splitlines()[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def code(text: str) -> str:
    return "```\n" + text.replace("```", "'''").rstrip() + "\n```"
