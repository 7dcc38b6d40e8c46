"""Loads the compiled operators, and says what was built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypedDict

import torch  # loads the libraries that the extension links to

try:
    import frcnn_ops._C as _C  # unlike "from . import", says which kind of failure it was
except ModuleNotFoundError as error:
    here = Path(__file__).resolve().parent
    for folder in sys.path:
        other = Path(folder or ".").resolve() / "frcnn_ops"
        if other != here and any(other.glob("_C.*")):
            raise ImportError(
                f"Python found the source folder {here}, which is not compiled, before the installed "
                f"{other}: run the command from another folder than the one that holds setup.py, or run "
                "`pip install --no-build-isolation -e .` there, which compiles in place."
            ) from error
    raise ImportError(
        "frcnn_ops is not compiled: run `pip install --no-build-isolation .` (or `-e .` to edit it) in the "
        "folder that holds its setup.py, with torch installed."
    ) from error
except ImportError as error:
    raise ImportError(
        f"the compiled part of frcnn_ops does not load with torch {torch.__version__}, probably because it "
        "was compiled for another: run `pip install --no-build-isolation --no-deps --force-reinstall .` in "
        f"the folder that holds its setup.py. The loader says: {error}"
    ) from error


class BuildInfo(TypedDict):
    torch: str
    """Version of the torch that it was compiled for."""
    compiler: str
    cuda: str
    """Version of the CUDA compiler; empty in a build for the CPU only."""
    cuda_archs: str
    """GPU architectures, as in TORCH_CUDA_ARCH_LIST; empty in a build for the CPU only."""
    ops: dict[str, list[str]]
    """For each operator the devices ("cpu", "cuda") that have a kernel for it."""


def build_info() -> BuildInfo:
    """What the compiled extension was built with, and for."""
    return _C.build_info()


def describe_build() -> str:
    """:func:`build_info` as text, a line per fact."""
    info = build_info()
    lines = [
        f"torch     {info['torch']}",
        f"compiler  {info['compiler']}",
        f"CUDA      {info['cuda'] or 'none, built for the CPU only'}",
    ]
    if info["cuda"]:
        lines.append(f"GPUs      {info['cuda_archs']}")
    width = max(len(name) for name in info["ops"])
    lines += [f"op        {name:{width}}  {' '.join(on)}" for name, on in info["ops"].items()]
    return "\n".join(lines)
