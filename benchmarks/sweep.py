"""Precisions, modes and batch sizes of the four backbones on one GPU, the most telling first.

    python benchmarks/sweep.py --output FOLDER             what fits into --seconds (default 200)
    python benchmarks/sweep.py --output FOLDER --quick     one small backbone on small images

benchmarks/run.py measures one precision and mode with care, beside a peer, in minutes. This measures as many
as it can: all cases share a process and its weights. FOLDER/sweep.json is whole after every case. A case that
crashes or hangs costs itself alone: it is noted before it begins, and a new process goes on behind it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from frcnn.files import replace_text, replacing

RECIPES = (
    "faster_rcnn_r50_fpn_1x_coco",
    "faster_rcnn_r101_fpn_1x_coco",
    "faster_rcnn_x101_32x4d_fpn_1x_coco",
    "faster_rcnn_x101_64x4d_fpn_1x_coco",
)
PRECISIONS = ("bfloat16", "tf32", "float32")
BATCHES = (1, 8)
TRAINING_BATCH = 2
FILE = "sweep.json"


@dataclass(frozen=True)
class Case:
    """What is timed: detection in a mode of ours or of the peer ("torchvision"), or a step ("training").

    Behind a mode of ours, with a comma, may be an `Epilogue` of frcnn.inference.fold that is not the default.
    """

    recipe: str
    precision: str
    mode: str
    batch: int


def all_cases(recipes: Sequence[str] = RECIPES, batches: Sequence[int] = BATCHES) -> list[Case]:
    """In the order of measurement: the goals first, then the rest by backbone, what has to compile last."""

    def of(recipe: str, precision: str, mode: str) -> list[Case]:
        sizes = (TRAINING_BATCH,) if mode == "training" else batches
        return [Case(recipe, precision, mode, batch) for batch in sizes]

    goals = [(recipe, "bfloat16", mode) for recipe in recipes for mode in ("graph", "training")]
    modes = ("graph", "eager", "training")
    rest = [(recipe, precision, mode) for recipe in recipes for precision in PRECISIONS for mode in modes]
    beside = [(recipes[0], "float32", "torchvision"), (recipes[0], "bfloat16", "torchvision")]
    beside.append((recipes[0], "bfloat16", "compiled"))
    for precision in ("bfloat16", "tf32"):  # to choose the default by
        beside += [(recipes[0], precision, f"graph, {epilogue}") for epilogue in ("cudnn", "kernel")]
    first = len(PRECISIONS) * len(modes)  # of the first backbone
    rest[first:first] = beside
    compiled = [(recipe, precision, "compiled") for precision in PRECISIONS for recipe in recipes]
    order = dict.fromkeys([*goals, *rest, *compiled])
    return [case for recipe, precision, mode in order for case in of(recipe, precision, mode)]


class Rows:
    """The results so far, in a file that is whole at every moment."""

    def __init__(self, folder: Path):
        self.file = folder / FILE
        self.all: list[dict] = json.loads(self.file.read_text()) if self.file.exists() else []

    def remaining(self, cases: Sequence[Case]) -> list[Case]:
        """Those that were not begun yet."""
        begun = {tuple(row[key] for key in asdict(cases[0])) for row in self.all}
        return [case for case in cases if tuple(asdict(case).values()) not in begun]

    def begin(self, case: Case) -> None:
        self.all.append({**asdict(case), "error": "crashed, hung or was interrupted"})
        self._write()

    def end(self, case: Case, result: dict) -> None:
        self.all[-1] = {**asdict(case), **result}
        self._write()

    def forget_last(self) -> None:
        """It was begun, and there was no time for it."""
        self.all.pop()
        self._write()

    def _write(self) -> None:
        replace_text(self.file, json.dumps(self.all, indent=1) + "\n")


class Measurement:
    """One backbone at a time on the GPU, and its last fast detector."""

    def __init__(self, folder: Path, size: tuple[int, int], seconds: float):
        self.folder, self.size, self.seconds = folder, size, seconds
        self.rounds = {"least": 5, "warm_up": 2} if seconds > 0 else {"least": 1, "warm_up": 0}
        self.recipe = self.fast_of = None

    def __call__(self, case: Case) -> dict:
        """Median and quartiles of the time of a call, and the most memory that tensors held."""
        from benchmarks.measure import interleave, summary

        if case.recipe != self.recipe:
            self._load(case.recipe)
        if case.mode == "torchvision":
            return self._peer(case)
        others = self._prepare(case)
        call = self.ours.train_step if case.mode == "training" else self.ours.detect
        self.ours.reset_peak()
        started = time.perf_counter()
        call()
        first = time.perf_counter() - started
        taken = interleave({"ours": call}, self.seconds, **self.rounds)["ours"]
        peak = self.ours.peak_bytes() - others
        return {**summary(taken, case.batch), "first_ms": first * 1e3, "peak_bytes": peak}

    def _load(self, recipe: str) -> None:
        import torch

        from benchmarks.ours import Ours

        self.recipe = self.fast_of = self.ours = None
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        self.ours = Ours()
        threads = torch.get_num_threads()
        self.ours.load(recipe, None, self.size, "cuda", "float32", "eager", threads)
        self.weights_bytes = torch.cuda.memory_allocated() - before
        self.ours.take_images(self._images(1))
        self.ours.model.eval()
        self.ours.calibrate()
        self.recipe = recipe

    def _prepare(self, case: Case) -> int:
        """Make ready what is timed; returns how many bytes the GPU holds that it does not need."""
        from benchmarks.inputs import annotations
        from frcnn.inference.fast_detector import FastDetector
        from frcnn.inference.hardware import DTYPES

        ours = self.ours
        ours.precision, ours.mode, ours.dtype = case.precision, case.mode, DTYPES[case.precision]
        ours.take_images(self._images(case.batch))
        if case.mode == "training":
            self.fast_of = ours.fast = None
            ours.start_training(*annotations(case.batch, *self.size, ours.model.config.num_classes))
            return 0
        ours.optimizer = None
        ours.model.zero_grad()
        ours.model.eval()
        if self.fast_of != (case.precision, case.mode):
            self.fast_of = ours.fast = None  # the last one's memory first
            mode, _, epilogue = case.mode.partition(", ")
            ours.fast = FastDetector(ours.model, case.precision, mode, epilogue=epilogue or "product")
            self.fast_of = (case.precision, case.mode)
        return self.weights_bytes  # of the model that trains

    def _peer(self, case: Case) -> dict:
        """torchvision's detector with the same weights, in a process of its own: it sets torch's switches."""
        from benchmarks.measure import interleave, summary
        from benchmarks.recipe import PEER, load_peer
        from benchmarks.worker import Worker

        weights = self.folder / "sweep-weights.pt"
        self.ours.save_weights(weights)
        classes = self.ours.model.config.num_classes
        with Worker(PEER) as peer:
            load_peer(
                peer, self.ours.recipe, str(weights), classes, case.precision, self.size, "cuda", threads=1
            )
            peer.call("take_images", file=self._images(case.batch))
            peer.call("reset_peak")
            detect = partial(peer.call, "detect")
            taken = interleave({"peer": detect}, self.seconds, **self.rounds)["peer"]
            return {**summary(taken, case.batch), "peak_bytes": peer.call("peak_bytes")}

    def _images(self, batch: int) -> str:
        import numpy as np

        from benchmarks.inputs import make_images

        file = self.folder / f"sweep{batch}.npy"
        if not file.exists():
            with replacing(file) as opened:
                np.save(opened, make_images(batch, *self.size)[0])
        return str(file)


def measure(cases: Sequence[Case], rows: Rows, measurement: Measurement, limit: float) -> None:
    """Every case that was not begun yet; a GPU that no longer answers ends the process."""
    import torch

    for case in rows.remaining(cases):
        rows.begin(case)
        faulthandler.dump_traceback_later(limit * (2 if case.mode == "compiled" else 1), exit=True)
        try:
            result = measurement(case)
        except Exception as error:
            measurement.recipe = None  # whatever state it left
            lines = f"{type(error).__name__}: {error}".splitlines()
            rows.end(case, {"error": " … ".join(dict.fromkeys([lines[0], lines[-1]]))[:300]})
            torch.cuda.synchronize()  # raises again where the device is lost
        else:
            rows.end(case, result)
            print(*asdict(case).values(), f"{result['median_ms']:.2f} ms", flush=True)
        finally:  # or the limit of this case would end whatever runs then
            faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of sweep.json")
    parser.add_argument("--scratch", type=Path, help="folder of the images (default: the output's)")
    parser.add_argument("--quick", action="store_true", help="R-50 alone, 64 x 96 pixels, batch 1")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which no case is begun")
    parser.add_argument("--each", type=float, default=1.0, help="seconds of timed calls for each case")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds before a case is given up")
    parser.add_argument("--without", nargs="*", default=[], metavar="MODE", help="leave out, as compiled")
    parser.add_argument("--one-process", action="store_true", help="what this program starts itself with")
    options = parser.parse_args()
    scratch = options.scratch or options.output
    for folder in (options.output, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    cases = all_cases(RECIPES[:1], BATCHES[:1]) if options.quick else all_cases()
    cases = [case for case in cases if case.mode not in options.without]
    if options.one_process:
        size = (64, 96) if options.quick else (800, 1333)
        measure(cases, Rows(options.output), Measurement(scratch, size, options.each), options.limit)
        return 0
    command = [sys.executable, __file__, *sys.argv[1:], "--one-process"]
    return restarting(command, cases, options.output, time.monotonic() + options.seconds)


def restarting(command: Sequence[str], cases: Sequence[Case], output: Path, deadline: float) -> int:
    """Run a command that measures all cases, again behind every case that ends it; 0 if all went well."""
    while remaining := Rows(output).remaining(cases):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            ended = subprocess.run(command, timeout=left).returncode
        except subprocess.TimeoutExpired:
            rows = Rows(output)
            if len(rows.remaining(cases)) < len(remaining) and "median_ms" not in rows.all[-1]:
                rows.forget_last()
            break
        if len(Rows(output).remaining(cases)) == len(remaining):
            print(f"no case could be begun (exit code {ended})", file=sys.stderr)
            return 1
    failed = [row for row in Rows(output).all if "error" in row]
    for row in failed:
        print(row["recipe"], row["precision"], row["mode"], row["batch"], row["error"], file=sys.stderr)
    left_out = len(Rows(output).remaining(cases))
    if left_out:
        print(f"{left_out} of {len(cases)} cases were left out: no time", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
