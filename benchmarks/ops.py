"""Every operator at the workloads of R-50-FPN, beside torchvision's and the pure-torch reference.

    python benchmarks/ops.py                      everything, on the GPU if there is one
    python benchmarks/ops.py --only nms --quick   small images, some operators
    python benchmarks/ops.py --device cpu --peer-python PATH   torchvision of another environment

Ours, torchvision's and the reference take turns in one run; medians are printed with the least bytes that
must move, the bandwidth that makes, its share of the device's copy bandwidth, and peak extra memory. A
library stops taking turns once it has used its budget of seconds. The reference's RoIAlign loops over RoIs in
Python, minutes for a thousand, and runs with --quick only. torchvision gets NCHW maps, the layout it reads,
whatever ours gets. Bytes are counted, times measured. Results go to ops.json and ops.md in
benchmarks/results/<date>-<machine>, or in the folder that --output names; they are whole after every case.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import machine, measure, report
from benchmarks.op_cases import Case, Image, all_cases
from benchmarks.worker import Worker
from frcnn.files import replace_text

RESULTS = Path(__file__).resolve().parent / "results"


def extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that a call holds above what was held before, its results included."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def run_case(
    case: Case, device: torch.device, budget: float, peer: Worker | None, most: int = 100
) -> dict[str, object]:
    """Median seconds and extra memory of each subject, taking turns.

    peer: runs torchvision's part of the case, in a process of its own.
    """
    runs: dict[str, Callable[[], float]] = {}
    memory = {}
    for name, call in case.subjects.items():
        memory[name] = extra_bytes(call, device)  # of the first call on: it warms up
        runs[name] = partial(measure.seconds_of, call, device)
    if peer is not None and case.peer is not None:
        function, arguments = case.peer
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            torch.save(arguments, file.name)
            peer.call("prepare", name=function, file=file.name, device=str(device))
        runs["torchvision"] = partial(peer.call, "run")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    for name, run in runs.items():
        started = time.perf_counter()
        run()  # warms up
        spent[name] = time.perf_counter() - started
    for _ in range(most):
        for name, run in runs.items():
            if seconds[name] and spent[name] > budget:
                continue
            started = time.perf_counter()
            seconds[name].append(run())
            spent[name] += time.perf_counter() - started
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"name": case.name, "bytes": case.bytes, "seconds": medians, "extra_bytes": memory,
            "samples": {name: len(values) for name, values in seconds.items()}}  # fmt: skip


def as_markdown(rows: list[dict], found: dict[str, object], copy: float) -> str:
    def ratio(row: dict, peer: str) -> str:
        seconds = row["seconds"]
        return f"{seconds[peer] / seconds['ours']:.1f}x" if peer in seconds else "-"

    lines = []
    for row in rows:
        ours, memory = row["seconds"]["ours"], row["extra_bytes"]["ours"]
        rate = row["bytes"] / ours
        lines.append([
            row["name"], f"{ours * 1e3:.3f}", f"{row['bytes'] / 1e6:.2f}", f"{rate / 1e9:.1f}",
            f"{rate / copy:.0%}", ratio(row, "torchvision"), ratio(row, "reference"),
            "-" if memory is None else f"{memory / 1e6:.1f}",
        ])  # fmt: skip
    header = "operator|ms|least MB|GB/s|of copy|torchvision / ours|reference / ours|extra MB".split("|")
    device = found.get("gpu", "no GPU: these are the CPU operators")
    about = f"{found['name']} ({device}), torch {found['torch']}, commit {found['commit']}"
    about += f", load {found['load_average']}"
    return f"# Operators\n\n{about}; copy bandwidth {copy / 1e9:.0f} GB/s\n\n{report.table(header, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--quick", action="store_true", help="256 x 320 pixels, fewer boxes, batch 1")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 2 8 on a GPU, else 1")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case and library")
    parser.add_argument("--peer-python", help="interpreter with torchvision; default: this one, if it has it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--output", type=Path, help="folder for the results, also with --quick")
    parser.add_argument(
        "--save", action=argparse.BooleanOptionalAction, default=True, help="write the results"
    )
    options = parser.parse_args()

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        print("no GPU: timing the CPU operators; the goals for a GPU stay unmeasured", file=sys.stderr)
    torch.set_num_threads(options.threads)
    peer = None
    if options.peer_python or find_spec("torchvision"):
        peer = Worker("benchmarks.peer_ops", options.peer_python or sys.executable, options.threads)
    else:
        print("torchvision is not installed: its column stays empty", file=sys.stderr)
    height, width = (256, 320) if options.quick else (800, 1333)
    batches = options.batches or ([1, 2, 8] if device.type == "cuda" and not options.quick else [1])
    copy = measure.copy_bandwidth(device)
    found = machine.describe(device, torch.get_num_threads())
    folder = options.output
    if folder is None and options.save and not options.quick:
        folder = RESULTS / f"{datetime.date.today()}-{found['name']}"
    rows, failed = [], []
    for case in all_cases(Image(height, width, device), batches, options.quick):
        if options.only not in case.name:
            continue
        try:
            rows.append(run_case(case, device, options.budget, peer))
        except RuntimeError as error:  # of one library: the other cases tell something all the same
            failed.append(case.name)
            print(case.name, "failed:", error, flush=True)
            continue
        milliseconds = {name: round(s * 1e3, 3) for name, s in rows[-1]["seconds"].items()}
        print(case.name, milliseconds, flush=True)
        if folder is not None:
            write(folder, rows, found, copy)
    if peer is not None:
        peer.close()
    if not rows + failed:
        raise SystemExit(f"no case's name contains {options.only!r}")
    print("\n" + as_markdown(rows, found, copy))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def write(folder: Path, rows: list[dict], found: dict[str, object], copy: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "ops.md", as_markdown(rows, found, copy))
    result = {"machine": found, "copy_bandwidth": copy, "cases": rows}
    replace_text(folder / "ops.json", json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
