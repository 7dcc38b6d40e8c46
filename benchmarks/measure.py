"""Timing and memory: medians of interleaved iterations, peaks, and what the machine can do at best.

Runs in the peer's interpreter too, so it needs nothing but torch.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def summary(seconds: Sequence[float], images: int = 1) -> dict[str, Any]:
    """median_ms, quartiles_ms and p95_ms of an iteration, and fps: images per second at the median."""
    median = statistics.median(seconds)
    return {
        "median_ms": median * 1e3,
        "quartiles_ms": [percentile(seconds, 0.25) * 1e3, percentile(seconds, 0.75) * 1e3],
        "p95_ms": percentile(seconds, 0.95) * 1e3,
        "fps": images / median,
        "samples": len(seconds),
    }


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Of one call; on a GPU the mean of several in a row, between events."""
    if device.type != "cuda":
        return timed(call, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(5):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 5e3


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def interleave(
    subjects: Mapping[str, Callable[[], float]],
    budget: float,
    least: int = 5,
    most: int = 200,
    warm_up: int = 2,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each subject's iterations, taken in turns (A B A B), so that a busy moment hits all alike.

    Each subject is a call that runs one iteration and returns its seconds. Rounds go on until `budget`
    seconds are spent; there are at least `least` and at most `most`. Warm-up iterations are not kept.
    """
    for _ in range(warm_up):
        for run in subjects.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    started = time.perf_counter()
    for completed in range(most):
        if completed >= least and time.perf_counter() - started > budget:
            break
        for name, run in subjects.items():
            seconds[name].append(run())
        on_round()
    return seconds


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with everything finished on the device."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes(field: str = "VmRSS") -> int | None:
    """Resident memory of this process (VmRSS), or its peak (VmHWM); None where the system does not tell."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak(device: torch.device) -> None:
    """Start a new peak, after giving unused memory back to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")


def peak_bytes(device: torch.device, before: int | None) -> int | None:
    """CUDA: the most memory that tensors held since reset_peak. CPU: how far the process's resident memory
    rose above `before`, its size when the libraries were loaded and no model yet.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resident_bytes("VmHWM")
    return None if peak is None or before is None else peak - before


def matrix_rate(
    device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 10
) -> float:
    """Operations per second (a multiply-add is two) of the best of several square matrix products."""
    size = size or (8192 if device.type == "cuda" else 2048)
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    torch.mm(left, right)
    return 2 * size**3 / min(timed(lambda: torch.mm(left, right), device) for _ in range(repeats))


def copy_bandwidth(device: torch.device, megabytes: int | None = None, repeats: int = 10) -> float:
    """Bytes read plus bytes written per second of the best of several copies (256 MB; CUDA 1 GB)."""
    elements = (megabytes or (1024 if device.type == "cuda" else 256)) << 18
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 8 * elements / min(timed(lambda: target.copy_(source), device) for _ in range(repeats))
