"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from small_recipe import small

from frcnn.config import Recipe
from frcnn.zoo.recipes import recipe

# A shell starts what runs in the background with SIGINT ignored, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, and no time limit: machines differ and may be busy.
settings.register_profile("frcnn", derandomize=True, deadline=None)
settings.load_profile("frcnn")

ROOT = Path(__file__).resolve().parents[1]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def pytest_addoption(parser):
    parser.addoption("--stress", action="store_true", help="the long forms of the tests marked stress")


@pytest.fixture
def stress(request) -> bool:
    """Whether to run the long form of a test; every test that asks is marked `stress`."""
    return request.config.getoption("--stress")


def pytest_terminal_summary(terminalreporter):
    """How much was tried, of the tests that say so by ``record_property("tried", "2,910 pickles")``."""
    lines = [
        f"{dict(report.user_properties)['tried']}: {outcome} ({report.nodeid}, {report.duration:.1f} s)"
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if "tried" in dict(report.user_properties)
    ]
    if lines:
        terminalreporter.section("tried")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Every device that the operators run on."""
    return torch.device(request.param)


class Cases:
    """Arrays of a .npz as tensors: ``cases("losses/pred")``."""

    def __init__(self, path: Path) -> None:
        self._arrays = np.load(path)

    def __call__(self, key: str, device: torch.device | str = "cpu") -> torch.Tensor:
        return torch.from_numpy(np.asarray(self._arrays[key])).to(device)

    def numbers(self, key: str) -> list:
        return np.asarray(self._arrays[key]).flatten().tolist()

    def number(self, key: str) -> float:
        return float(self._arrays[key])


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Anchors, box coder, loss and assignment cases, computed by MMDetection 3.3.0."""
    return Cases(ROOT / "tests" / "ops" / "cases" / "ops_small.npz")


@pytest.fixture
def threads():
    """Sets the number of CPU threads: ``threads(1)``; restored afterward."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    threads(1)


@pytest.fixture
def random_boxes():
    """``random_boxes(n, seed, ...)``: proper boxes inside an image of ``extent`` pixels."""

    def make(n, seed=0, dtype=torch.float32, device="cpu", extent=200.0):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * extent * 0.7
        size = torch.rand(n, 2, generator=generator, dtype=torch.float64) * extent * 0.3 + 1
        return torch.cat([corner, corner + size], dim=1).to(device=device, dtype=dtype)

    return make


@pytest.fixture
def small_recipe() -> Recipe:
    """A published recipe shrunk to a ResNet-18 and narrow layers: the same code, a few megabytes."""
    return small(recipe("faster_rcnn_r50_fpn_1x_coco"))
