"""These tests run on the emulated device alone: `make test-gpu-emulated`."""

import os
import sys
from pathlib import Path

import pytest

EMULATED = "EMULATED_GPU_LIBRARY" in os.environ
ROOT = Path(__file__).resolve().parents[2]
if EMULATED:
    sys.path.insert(0, str(ROOT / "tools" / "cuda_emulator"))
    sys.path.append(str(ROOT / "tests" / "engine"))  # its tiny recipe
    sys.path.append(str(ROOT / "tests" / "ops"))  # its calls of the operators
    sys.path.append(str(ROOT))  # the benchmarks are not installed; frcnn is found before
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def without_faults():
    """A fault that a test does not expect fails it, whatever the numbers are."""
    import emulated_gpu

    before = emulated_gpu.faults()
    expected = []
    yield expected
    assert emulated_gpu.faults() == before + len(expected), "the emulated device has reported faults"


@pytest.fixture(autouse=True)
def on_the_default_stream():
    """torch leaves its stream current where a capture fails."""
    import torch

    yield
    torch.cuda.set_stream(torch.cuda.default_stream())
