"""`frcnn env`: versions, devices and what was built, in lines for people and for reports of problems."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

PACKAGE = "frcnn"


def environment() -> str:
    """A line per fact. What is missing or does not load is a line that says so, never an exception."""
    import torch

    from frcnn import __version__
    from frcnn.inference.hardware import available_cpus, cpu_computes

    python = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    rows = [(PACKAGE, __version__), ("python", python)]
    rows += [("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")]
    formats = ["float32", *(name for name in ("bfloat16", "float16") if cpu_computes(name))]
    rows.append(("cpu", f"{_processor()}: {available_cpus()} to use, computes in {', '.join(formats)}"))
    rows.append(("threads", f"{torch.get_num_threads()} of torch's"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        rows.append((f"cuda:{index}", f"{device.name}, {capability}, {device.total_memory >> 20} MiB"))
    if not torch.cuda.is_available():
        rows.append(("cuda", "no device"))
    rows += _packages()
    rows += [("" if index else "built", line) for index, line in enumerate(_built())]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in rows)


def _processor() -> str:
    """The processor's name: on Linux platform.processor() says little."""
    try:
        with open("/proc/cpuinfo") as file:
            named = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def _packages() -> list[tuple[str, str]]:
    """What frcnn needs beside torch, then what its extras add for users."""
    rows = []
    seen = {"torch"}  # has a row of its own
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return [("packages", f"{PACKAGE} is not installed; it runs from {os.path.dirname(__file__)}")]
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name is None or name[0] in seen or (extra and extra[1] in ("demo", "docs", "test")):
            continue
        before = re.search(r"python_version < ['\"](\d+)\.(\d+)['\"]", requirement)
        if before and sys.version_info >= (int(before[1]), int(before[2])):
            continue  # not needed here
        seen.add(name[0])  # several extras may have it
        try:
            version = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            version = f"missing (extra {extra[1]}: pip install {name[0]})" if extra else "missing"
        rows.append((name[0], version))
    return rows


def _built() -> list[str]:
    try:
        from frcnn_ops import describe_build
    except ImportError as error:
        return [str(error)]
    return describe_build().splitlines()
