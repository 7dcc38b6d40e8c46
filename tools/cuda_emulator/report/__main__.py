"""Counts what every kernel does at R-50-FPN's sizes, and predicts its time: Markdown on the standard output.

    python tools/cuda_emulator/report [NAME ...]

Needs nvcc and nvdisasm, no GPU; takes some minutes. NAME: only workloads whose name has it. Every time is
predicted, by the roofline of model.py; none was measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "cpp"), str(ROOT)]
os.environ["FRCNN_EMULATED"] = "counted"

import model  # noqa: E402
import sass  # noqa: E402
from counters import Launch, count  # noqa: E402
from workloads import workloads  # noqa: E402


def ratio(a: float, b: float) -> str:
    return f"{a / b:.1f}" if b else "-"


SUMS_OF_LAUNCH = {
    "blocks", "requests", "collectives", "sectors_read", "sectors_read_by_blocks", "sectors_written",
    "sectors_written_by_blocks", "lines",
}  # fmt: skip
SUMS_OF_SITE = {"requests", "lanes", "sectors", "lines", "useful", "wavefronts", "least_wavefronts"}


def scaled(launch: Launch, times: int) -> Launch:
    """As if the grid were so many times as large, with blocks of the same kind."""
    sites = tuple(
        replace(site, **{name: getattr(site, name) * times for name in SUMS_OF_SITE}) for site in launch.sites
    )
    return replace(launch, sites=sites, **{n: getattr(launch, n) * times for n in SUMS_OF_LAUNCH})


COUNTED = (
    "workload and kernel", "blocks x threads", "device: sectors/request", "line bytes/useful",
    "shared: wavefronts/least", "longest/mean block", "counted on",
)  # fmt: skip
PREDICTED = (
    "workload and kernel", "device memory", "L2", "issue", "shared, L1", "longest block", "predicted",
    "bound by",
)  # fmt: skip
CLASSES = ("fp32", "fp64", "integer", "convert", "device", "shared", "control")
COMPILED = ("kernel", "registers", "static shared", "spills", "its hottest loop", *CLASSES)


def table(head: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    """Markdown; numbers to the right. Rows that repeat are left out."""
    unique = list({tuple(row): None for row in rows})
    text = {"workload and kernel", "kernel", "bound by", "counted on"}
    rule = ("---" if name in text else "---:" for name in head)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, tuple(rule), *unique])


def counted_row(name: str, launch: Launch, times: int) -> list[str]:
    device, shared = launch.sites_of(shared=False), launch.sites_of(shared=True)
    return [
        f"{name}: `{launch.kernel}`",
        f"{launch.blocks} x {launch.threads}",
        ratio(sum(s.sectors for s in device), sum(s.requests for s in device)),
        ratio(sum(s.lines for s in device) * 128, sum(s.useful for s in device)),
        ratio(sum(s.wavefronts for s in shared), sum(s.least_wavefronts for s in shared)),
        f"{launch.longest_share:.1f}",
        "all of it" if times == 1 else f"1/{times} of it",
    ]


def predicted_row(name: str, launch: Launch, p: model.Prediction) -> list[str]:
    parts = (p.device, p.l2, p.issue, p.shared, p.longest_block, p.seconds)
    return [f"{name}: `{launch.kernel}`", *(f"{seconds * 1e6:.1f}" for seconds in parts), p.bound]


def compiled_of(kernels: dict[tuple[str, str], sass.Kernel], launch: Launch) -> tuple[str, str]:
    """The file and the name of a launch's kernel; several files may have a kernel of one name."""
    lines = {site.line[0] for site in launch.sites}
    found = [key for key in kernels if key[1] == launch.kernel]
    (key,) = found if len(found) == 1 else (key for key in found if key[0] in lines)
    return key


def compiled_row(file: str, kernel: sass.Kernel, launch: Launch) -> list[str]:
    work = sass.issued(kernel, launch.warps, launch.by_line())
    loop = kernel.loops[work.index(max(work))]
    name = "none" if loop.parent is None else str(len(loop.own))
    numbers = [kernel.registers, kernel.shared, kernel.spills, name, *(loop.classes[c] for c in CLASSES)]
    return [f"`{kernel.name}` of {file}", *map(str, numbers)]


def main() -> None:
    wanted = sys.argv[1:]
    kernels = sass.read()
    counted: list[list[str]] = []
    predicted: list[list[str]] = []
    compiled: dict[tuple[str, str], list[str]] = {}
    for workload in workloads():
        if wanted and not any(part in workload.name for part in wanted):
            continue
        start = time.monotonic()
        launches = [launch for launch in count(workload.run) if launch.requests > 0]
        print(f"{workload.name}: counted in {time.monotonic() - start:.1f} s", file=sys.stderr)
        for launch in launches:
            key, whole = compiled_of(kernels, launch), scaled(launch, workload.scale)
            kernel = kernels[key]
            counted.append(counted_row(workload.name, launch, workload.scale))
            predicted.append(predicted_row(workload.name, whole, model.predict(whole, kernel)))
            compiled.setdefault(key, compiled_row(key[0], kernel, launch))
    print(table(COUNTED, counted))
    print(f"\n{model.SOURCES}\n\nMicroseconds, predicted:\n\n{table(PREDICTED, predicted)}")
    print(f"\nCompiled for {sass.ARCH}:\n\n{table(COMPILED, compiled.values())}")


if __name__ == "__main__":
    main()
