"""Loads the compiled operators, and says what was built."""

from __future__ import annotations

import ctypes
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
                "`pip install --no-build-isolation -e .` there, which compiles in place.",
                name="frcnn_ops",  # by which `python -m frcnn_ops` knows that a message does, no traceback
            ) from error
    raise ImportError(
        "frcnn_ops is not compiled: run `pip install --no-build-isolation .` (or `-e .` to edit it) in the "
        "folder that holds its setup.py, with torch installed.",
        name="frcnn_ops",
    ) from error
except ImportError as error:
    raise ImportError(
        f"the compiled part of frcnn_ops does not load with torch {torch.__version__}; it needs torch 2.10 "
        "or later, on the kind of machine it was compiled for. Otherwise run `pip install "
        "--no-build-isolation --no-deps --force-reinstall .` in the folder that holds its setup.py. "
        f"The loader says: {error}",
        name="frcnn_ops",
    ) from error

library = ctypes.CDLL(_C.__file__)
"""What csrc/bindings/library.cpp offers beside the operators."""


class BuildInfo(TypedDict):
    torch: str
    """Version of the torch whose headers it was compiled with; it runs with 2.10 and every later one."""
    compiler: str
    cuda: str
    """Version of the CUDA compiler; empty in a build for the CPU only."""
    cuda_archs: str
    """GPU architectures, as in TORCH_CUDA_ARCH_LIST; empty in a build for the CPU only."""
    ops: dict[str, list[str]]
    """For each operator the devices ("cpu", "cuda") that have a kernel for it."""


def build_info() -> BuildInfo:
    """What the compiled extension was built with, and for."""
    return {
        "torch": _built_with("torch"),
        "compiler": _built_with("compiler"),
        "cuda": _built_with("cuda"),
        "cuda_archs": _built_with("cuda_archs"),
        "ops": _registered_ops(),
    }


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


def _built_with(what: str) -> str:
    library.frcnn_build_info.restype = ctypes.c_char_p
    return library.frcnn_build_info(what.encode()).decode()


def _registered_ops() -> dict[str, list[str]]:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("frcnn_ops::")]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix("frcnn_ops::"): [
            device for device, key in (("cpu", "CPU"), ("cuda", "CUDA")) if has_kernel(name, key)
        ]
        for name in sorted(names)
    }
