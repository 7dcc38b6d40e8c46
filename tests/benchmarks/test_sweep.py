"""The order of the sweep's cases, and that a case that crashes or hangs costs itself alone. No GPU."""

import json
import subprocess
import sys
import time

from benchmarks.sweep import FILE, RECIPES, Case, Rows, all_cases, measure, restarting

CASES = [Case("r50", "float32", mode, 1) for mode in ("graph", "eager", "training", "compiled")]

CHILD = """
import os, sys, time
sys.path.append({root!r})
from pathlib import Path
from benchmarks.sweep import Case, Rows
rows = Rows(Path({folder!r}))
cases = [Case("r50", "float32", mode, 1) for mode in ("graph", "eager", "training", "compiled")]
for case in rows.remaining(cases):
    rows.begin(case)
    {faults}
    rows.end(case, {{"median_ms": 1.0}})
"""


def child(folder, faults="pass"):
    from benchmarks.gpu_report import ROOT

    return [sys.executable, "-c", CHILD.format(root=str(ROOT), folder=str(folder), faults=faults)]


def found(folder):
    rows = json.loads((folder / FILE).read_text())
    return {row["mode"]: row.get("error", row.get("median_ms")) for row in rows}


def test_every_combination_is_there_once_and_the_goals_come_first():
    cases = all_cases()
    assert len(set(cases)) == len(cases)
    combinations = {
        Case(recipe, precision, mode, batch)
        for recipe in RECIPES
        for precision in ("float32", "tf32", "bfloat16")
        for mode, batches in {"eager": (1, 8), "graph": (1, 8), "compiled": (1, 8), "training": (2,)}.items()
        for batch in batches
    }
    assert combinations <= set(cases)
    rest = {case.mode for case in set(cases) - combinations}
    assert rest == {"torchvision", "graph, cudnn", "graph, kernel"}
    assert cases[0] == Case(RECIPES[0], "bfloat16", "graph", 1)
    first = cases[:12]
    assert {case.recipe for case in first} == set(RECIPES)
    assert {(case.mode, case.batch) for case in first} == {("graph", 1), ("graph", 8), ("training", 2)}


def test_a_crash_costs_its_case_alone(tmp_path):
    faults = "case.mode == 'eager' and os._exit(11)"
    assert restarting(child(tmp_path, faults), CASES, tmp_path, time.monotonic() + 60) == 1
    assert found(tmp_path) == {
        "graph": 1.0, "eager": "crashed, hung or was interrupted", "training": 1.0, "compiled": 1.0
    }  # fmt: skip


def test_all_is_well(tmp_path):
    assert restarting(child(tmp_path), CASES, tmp_path, time.monotonic() + 60) == 0
    assert set(found(tmp_path).values()) == {1.0}


def test_the_case_that_time_ended_is_no_failure(tmp_path):
    faults = "case.mode == 'eager' and time.sleep(600)"
    assert restarting(child(tmp_path, faults), CASES, tmp_path, time.monotonic() + 3) == 0
    assert found(tmp_path) == {"graph": 1.0}


def test_a_command_that_begins_nothing_is_not_repeated_for_ever(tmp_path):
    assert (
        restarting([sys.executable, "-c", "raise SystemExit(5)"], CASES, tmp_path, time.monotonic() + 60) == 1
    )


def test_an_exception_is_a_row_and_the_next_case_starts_anew(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    class Measurement:
        recipe = "r50"

        def __call__(self, case):
            if case.mode == "eager":
                raise RuntimeError("out of memory\nand much more")
            return {"median_ms": 1.0, "was": self.recipe}

    measurement = Measurement()
    measure(CASES, Rows(tmp_path), measurement, limit=60)
    assert found(tmp_path)["eager"] == "RuntimeError: out of memory … and much more"
    rows = json.loads((tmp_path / FILE).read_text())
    assert [row.get("was") for row in rows] == ["r50", None, None, None]  # the failed one's model is dropped


LOST = """
import sys, time
sys.path.append({root!r})
from pathlib import Path
import torch
from benchmarks.sweep import Case, Rows, measure

class Measurement:
    recipe = None

    def __call__(self, case):
        raise RuntimeError("an illegal memory access was encountered")

def lost():
    raise RuntimeError("an illegal memory access was encountered")

torch.cuda.synchronize = lost
cases = [Case("r50", "float32", mode, 1) for mode in ("graph", "eager")]
try:
    measure(cases, Rows(Path({folder!r})), Measurement(), limit=0.5)
except RuntimeError as error:
    time.sleep(1.0)
    print("left by", error)
"""


def test_a_lost_device_ends_the_loop_behind_the_row_and_the_limit_with_it(tmp_path):
    """In a process of its own: a limit that was left behind would end this one."""
    from benchmarks.gpu_report import ROOT

    code = LOST.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "left by an illegal memory access was encountered\n", done.stderr
    assert found(tmp_path) == {"graph": "RuntimeError: an illegal memory access was encountered"}
