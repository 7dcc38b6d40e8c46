"""Devices, number formats and threads: what this machine can do, and how to ask torch for it."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from frcnn.checked import OptionError

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
X86_FEATURES = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; None takes CUDA where there is one, else the CPU.

    Raises OptionError, naming what there is, where this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.accelerator.current_accelerator()
    there = [] if kind is None else [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]
    try:
        chosen = torch.device(device)
        if chosen.type == "cpu" or f"{chosen.type}:{chosen.index or 0}" in there:
            return chosen
    except RuntimeError:  # not a device's name at all
        pass
    without = "; this torch is built for CPUs only" if kind is None else ""
    raise OptionError(f"no device {str(device)!r}: this machine has {', '.join(['cpu', *there])}{without}")


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise OptionError, naming what to use instead, where the device has no arithmetic of this precision."""
    if precision not in DTYPES:
        raise OptionError(f"unknown precision {precision!r}: choose one of {', '.join(DTYPES)}")
    if precision == "float32":
        return
    if device.type == "cuda":
        if precision != "float16" and torch.cuda.get_device_capability(device) < (8, 0):
            raise OptionError(
                f"{torch.cuda.get_device_name(device)} has no {precision} arithmetic (it came with compute "
                "capability 8.0): use precision=float16 or precision=float32"
            )
    elif device.type == "cpu":
        if precision == "tf32":
            raise OptionError(
                "tf32 is a format of NVIDIA GPUs: on a CPU use precision=float32 or precision=bfloat16"
            )
        if not cpu_computes(precision):
            needed = " or ".join(X86_FEATURES[precision])
            raise OptionError(
                f"this CPU ({platform.machine()}) has no {precision} arithmetic (on x86: {needed}), so it "
                "would be slower than float32: use precision=float32"
            )


def cpu_computes(precision: Literal["bfloat16", "float16"]) -> bool:
    """Whether this CPU multiplies numbers of the format itself, and oneDNN makes use of it."""
    if not torch.backends.mkldnn.is_available():
        return False
    supported = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    if not (hasattr(torch.ops.mkldnn, supported) and getattr(torch.ops.mkldnn, supported)()):
        return False
    features = _cpu_features()
    if features.get("architecture") == "x86_64":
        return any(features.get(name, False) for name in X86_FEATURES[precision])
    return bool(features.get({"bfloat16": "bf16", "float16": "fp16_arith"}[precision], False))


def _cpu_features() -> Mapping[str, Any]:
    """What torch knows of the CPU. 2.10 has a function for each feature, and of ARM only oneDNN's answer."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {
        "architecture": {"AMD64": "x86_64"}.get(platform.machine(), platform.machine()),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
        "bf16": True,
        "fp16_arith": True,
    }


_arithmetic_lock = threading.RLock()


@contextmanager
def float32_arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Choose how CUDA computes float32 matrix products and convolutions in the block: in TF32 for "tf32", in
    IEEE's float32 for all else, whatever torch's own settings are (its convolutions use TF32 if nobody says
    otherwise). These are restored after it.

    Training, detection and verification compute in such blocks; nothing else here chooses. The settings are
    the process's: where they matter, threads take turns.
    """
    if device.type != "cuda":
        yield
        return
    # torch adds conv to its module at run time
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    wanted = "tf32" if precision == "tf32" else "ieee"
    with _arithmetic_lock:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = wanted
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def available_cpus() -> int:
    """Processors that this process may use: its affinity, and its control group's quota if there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def limit_threads() -> None:
    """Lower torch's threads to the available processors: with more, threads wait for each other."""
    if torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())
