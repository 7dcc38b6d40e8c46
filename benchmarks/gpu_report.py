"""Everything that a GPU has to show, in nine minutes: builds, tests, sanitizes, verifies and measures.

    make gpu-report                               in the project's own environment
    GPU_PYTHON=python3 make gpu-report            with an interpreter that has torch; nothing is installed
    GPU_REPORT_ARGS="--only build,sweep" make gpu-report

The checks run at the same time, the measurements alone. Each part has a limit, and the whole ends in time.
Whatever is interrupted, at any moment, leaves in the output folder what was found until then: report.md,
results.json, logs.txt and the tables' own files. Packages that are missing are named in the report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks import gpu_markdown  # noqa: E402
from frcnn.files import replace_text  # noqa: E402

SECONDS = 540.0
"""The whole report's limit. A part that is told to stop gets a few more to say where it was."""
GRACE = 4.0
LOG_BYTES = 300_000
"""Kept of each part's output, from its end."""

MACHINE = """
import importlib.util, json, platform, torch
names = "numpy tqdm filelock safetensors setuptools ninja tyro hotcoco pycocotools pytest hypothesis"
needed = {name: name for name in [*names.split(), "torchvision"]}
needed |= {"cv2": "opencv-python-headless", "PIL": "pillow", "xdist": "pytest-xdist"}
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
    "missing": [package for module, package in needed.items() if importlib.util.find_spec(module) is None]}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "capability": f"{card.major}.{card.minor}", "memory": card.total_memory,
        "cudnn": torch.backends.cudnn.version()}
print("found", json.dumps(found))
"""
# Without the checkout's own folders: frcnn and its operators come from where they were built.
FROM_BUILD = "import sys; sys.path = [folder for folder in sys.path if folder]; "
PYTEST = FROM_BUILD + "import pytest; sys.exit(pytest.main())"
FRCNN = FROM_BUILD + "from frcnn.__main__ import main; sys.exit(main())"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Part:
    """A command with a limit."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    """Why it cannot be run."""


@dataclass
class Outcome:
    """What became of a part."""

    name: str
    limit: float
    result: str = "running"
    seconds: float = 0.0
    passed: bool = False


class Report:
    """The outcomes so far; `write` puts them and the parts' own tables into the output folder."""

    def __init__(self, output: Path, logs: Path, commit: str, rehearsal: bool):
        self.output, self.logs = output, logs
        self.about = {"date": datetime.date.today().isoformat(), "commit": commit, "rehearsal": rehearsal}
        self.machine: dict = {}
        self.outcomes: list[Outcome] = []

    def log(self, name: str) -> str:
        """The end of what a part printed."""
        file = self.logs / f"{name}.txt"
        if not file.exists():
            return ""
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - LOG_BYTES))
            return opened.read().decode(errors="replace")

    def write(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        logs = {outcome.name: self.log(outcome.name) for outcome in self.outcomes}
        rows = self.output / "sweep.json"
        result = {
            **self.about,
            "machine": self.machine,
            "parts": [vars(outcome) for outcome in self.outcomes],
            "sweep": json.loads(rows.read_text()) if rows.exists() else [],
        }
        operators = self.output / "ops.md"
        text = gpu_markdown.report(result, logs, operators.read_text() if operators.exists() else "")
        replace_text(self.output / "report.md", text)
        replace_text(self.output / "results.json", json.dumps(result, indent=1) + "\n")
        replace_text(self.output / "logs.txt", "".join(f"==== {n}\n{t}\n" for n, t in logs.items()))


def run(parts: Sequence[Part], report: Report, environment: dict[str, str], every: float = 5.0) -> bool:
    """Run the parts of a phase at the same time, each until its limit; whether all of them passed."""
    report.logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, tuple[subprocess.Popen, Outcome, float]] = {}
    outcomes = []
    try:
        for part in parts:
            outcome = Outcome(part.name, part.seconds)
            outcomes.append(outcome)
            report.outcomes.append(outcome)
            if part.missing:
                outcome.result = f"not run: {part.missing}"
                continue
            print(f"{part.name} … (at most {part.seconds:.0f} s)", flush=True)
            with (report.logs / f"{part.name}.txt").open("wb") as log:
                process = subprocess.Popen(
                    part.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                    env={**environment, **part.environment}, start_new_session=True,
                )  # fmt: skip
            running[part.name] = process, outcome, time.monotonic()
        written = time.monotonic()
        while running:
            time.sleep(0.05)
            for name, (process, outcome, started) in list(running.items()):
                outcome.seconds = time.monotonic() - started
                code = process.poll()
                if code is None and outcome.seconds < outcome.limit:
                    continue
                stop(process)
                del running[name]
                outcome.passed = code == 0
                outcome.result = "out of time" if code is None else "passed" if code == 0 else ended(code)
                print(f"{name}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)
                report.write()
            if time.monotonic() - written > every:
                report.write()
                written = time.monotonic()
    finally:
        for process, outcome, _ in running.values():
            outcome.result = "interrupted"
            stop(process, grace=1.0)
        report.write()
    return all(outcome.passed for outcome in outcomes)


def ended(code: int) -> str:
    return f"failed (exit code {code})" if code > 0 else f"killed by {signal.Signals(-code).name}"


def stop(process: subprocess.Popen, grace: float = GRACE) -> None:
    """End a part and all that it started: asked first, so that it can say where it was."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nobody is left
        pass
    process.wait()


def cuda_home() -> str | None:
    """The toolkit's folder, named by the user or where it usually is."""
    named = os.environ.get("CUDA_HOME")
    return named or ("/usr/local/cuda" if Path("/usr/local/cuda/bin/nvcc").exists() else None)


def sanitizer() -> str | None:
    folders = [os.environ.get("PATH", "")] + [f"{home}/bin" for home in [cuda_home()] if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def build_part(python: str, folder: Path, machine: dict, scale: float) -> Part:
    folders = [f"--build-base={folder}", f"--build-lib={folder / 'lib'}"]
    environment = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": machine["capability"]}
    if home := cuda_home():
        environment["CUDA_HOME"] = home
    return Part("build", [python, "setup.py", "--quiet", "build", *folders], 130 * scale, environment)


def checks(python: str, machine: dict, rehearsal: bool, scale: float) -> list[Part]:
    """Whatever does not measure."""
    pytest = [python, "-c", PYTEST, "-v", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    processes = [] if "pytest-xdist" in machine["missing"] else ["-n", "2" if rehearsal else "8"]
    tests = ["tests/ops/test_box_iou.py"] if rehearsal else ["tests"]
    tool = sanitizer()
    agrees = "agrees and cuda"  # not what the emulator agrees with
    operators = ["tests/ops/test_cuda_only.py", "tests/cpp/test_kernels.py", "-k"]
    operators.append(f"{agrees} and box_iou" if rehearsal else f"({agrees}) or nchw")
    few = {"OMP_NUM_THREADS": "2"}
    # every tensor its own allocation, so that what lies behind it is not another tensor
    alone = {**few, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Part("tests", [*pytest, *processes, *tests, "-k", "cuda"], 130 * scale, few),
        Part("verify", [python, "-c", FRCNN, "verify", "--device", "cuda"], 100 * scale, few),
        *(
            Part(
                name,
                [tool or "", "--tool", name, "--error-exitcode", "9", *pytest, *operators],
                130 * scale,
                alone,
                "" if tool else "there is no compute-sanitizer on the PATH or in CUDA_HOME",
            )
            for name in SANITIZERS
        ),
    ]


def operators_part(python: str, output: Path, rehearsal: bool, scale: float) -> Part:
    small = ["--quick", "--budget", "0", "--only", "code"] if rehearsal else ["--budget", "0.3"]
    command = [python, "benchmarks/ops.py", "--device", "cuda", "--output", str(output), *small]
    return Part("ops", command, 60 * scale)


def sweep_part(python: str, output: Path, scratch: Path, rehearsal: bool, seconds: float) -> Part:
    """Ends by itself a moment before its limit."""
    small = ["--quick", "--each", "0", "--limit", "600"] if rehearsal else []
    if rehearsal:  # Triton needs a driver, and the emulated device's environment has no torchvision
        small += ["--without", "compiled", "torchvision"]
    command = [python, "benchmarks/sweep.py", "--output", str(output), "--scratch", str(scratch)]
    return Part("sweep", [*command, "--seconds", f"{seconds - GRACE:.0f}", *small], seconds)


def look(python: str, report: Report, seconds: float) -> None:
    """Find out which GPU this is; SystemExit where there is none."""
    run([Part("machine", [python, "-c", MACHINE], seconds)], report, dict(os.environ))
    said = re.search(r"^found (.+)$", report.log("machine"), re.MULTILINE)
    if said is None:
        raise SystemExit(f"{python} cannot say what torch sees:\n{report.log('machine')[-2000:]}")
    report.machine = json.loads(said[1])
    if "card" not in report.machine:
        raise SystemExit(
            f"make gpu-report needs a CUDA device, and torch {report.machine['torch']} sees none"
        )
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu"
    try:
        smi = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
        report.machine["nvidia_smi"] = smi.stdout.strip()
    except OSError:
        report.machine["nvidia_smi"] = ""
    report.machine["cores"] = len(os.sched_getaffinity(0))


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-<card>")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", help="where to build, kept")
    parser.add_argument("--only", help="parts, with commas: build, checks, ops, sweep (default: all)")
    parser.add_argument("--commit", default=commit(), help="said in the report where there is no git")
    parser.add_argument("--rehearsal", action="store_true", help="small sizes, ten times as long limits")
    options = parser.parse_args(arguments)
    phases = options.only.split(",") if options.only else ["build", "checks", "ops", "sweep"]
    signal.signal(signal.SIGTERM, interrupted)
    # a shell starts what runs in the background with SIGINT ignored; parts that inherit this could not be
    # asked to stop
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scale = 10.0 if options.rehearsal else 1.0
    started, python = time.monotonic(), sys.executable
    build, logs = options.build.resolve(), options.build.resolve() / "logs"
    report = Report(options.output or build / "report", logs, options.commit, options.rehearsal)
    shutil.rmtree(logs, ignore_errors=True)
    look(python, report, 40 * scale)
    if options.output is None and not gpu_markdown.emulated(report.machine):
        name = re.sub(r"[^a-z0-9]+", "-", report.machine["card"].lower()).strip("-")
        report.output = ROOT / "benchmarks" / "results" / f"{report.about['date']}-{name}"
    for stale in ("sweep.json", "ops.md", "ops.json"):
        (report.output / stale).unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(build / "lib"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}

    def left() -> float:
        return max(1.0, scale * SECONDS - (time.monotonic() - started) - GRACE)

    def phase(*parts: Part) -> bool:
        return run([replace(part, seconds=min(part.seconds, left())) for part in parts], report, environment)

    passed = True
    try:
        if "build" in phases:
            passed = phase(build_part(python, build, report.machine, scale))
        if passed:
            if "checks" in phases:
                passed &= phase(*checks(python, report.machine, options.rehearsal, scale))
            if "ops" in phases:
                passed &= phase(operators_part(python, report.output, options.rehearsal, scale))
            if "sweep" in phases:
                passed &= phase(sweep_part(python, report.output, build, options.rehearsal, left()))
    except KeyboardInterrupt:
        print("interrupted; what was found is kept", file=sys.stderr)
        passed = False
    print(f"\n{(report.output / 'report.md').read_text()}\nwritten to {report.output}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
