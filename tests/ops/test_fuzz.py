"""Random calls of every operator, valid and hostile, in a process of their own (fuzz.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_arguments import GENERATORS

import frcnn_ops
from frcnn_ops.extension import _C

FUZZ = Path(__file__).with_name("fuzz.py")


def test_every_operator_has_a_generator():
    assert sorted(GENERATORS) == sorted(frcnn_ops.build_info()["ops"])


@pytest.mark.skipif(sys.platform == "win32", reason="limits of time and memory are those of POSIX")
@pytest.mark.stress
def test_calls_agree_with_the_reference_or_name_the_operator(stress, record_property):
    """FUZZ_CALLS overrides how many; `make sanitize` runs this in a build that checks every access."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        assert b"__asan_init" in Path(_C.__file__).read_bytes(), f"{_C.__file__} is not the build to check"
    calls = int(os.environ.get("FUZZ_CALLS") or (100_000 if stress else 2_000))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FUZZ), "0", str(calls)], capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    last = max((i for i, line in enumerate(lines) if line.isdigit()), default=0)
    said = "\n".join([done.stdout, "the last seed and what followed:", *lines[last : last + 20]])
    assert done.returncode == 0, f"ended with {done.returncode}\n{said}"
    found = json.loads(done.stdout)
    for name in GENERATORS:
        outcomes = {outcome for outcome in ("valid", "refused") if f"{name}: {outcome}" in found["counts"]}
        if name.startswith("winograd") and not frcnn_ops.winograd_available():
            assert not outcomes
        else:
            assert outcomes == {"valid", "refused"}, f"{name} had only {outcomes}"
    assert found["peak_mb"] < 3_000, "a hostile size was allocated"
    refused = sum(n for outcome, n in found["counts"].items() if outcome.endswith("refused"))
    record_property("tried", f"{calls:,} random operator calls, {refused:,} of them refused")
