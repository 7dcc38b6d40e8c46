"""Which machine a result comes from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def describe(device: torch.device, threads: int) -> dict[str, object]:
    """Everything that a reader needs to judge the numbers."""
    found: dict[str, object] = {
        "name": name(device, threads),
        "cpu": _cpu_model(),
        "threads": threads,
        "vector_units": vector_units(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found


def name(device: torch.device, threads: int) -> str:
    """A short name for folders: cpu-2core-avx512-amx, or the GPU's name."""
    if device.type == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return "-".join(["cpu", f"{threads}core", *vector_units()])


def vector_units() -> list[str]:
    """The widest vector unit that torch uses, and the matrix unit if the CPU has one."""
    units = [torch.backends.cpu.get_cpu_capability().lower().replace("_", "")]
    if CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text():
        units.append("amx")
    return units


def commit() -> str:
    """The checkout's commit, marked where files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return head.stdout.strip()


def _cpu_model() -> str:
    if CPUINFO.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
