"""Loads the compiled operators, and says what was built."""

from __future__ import annotations

import ctypes
import filecmp
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypedDict

import torch  # loads the libraries that the extension links to


def _compiled() -> ModuleType:
    """The extension beside this file. After a plain install a clone, which Python finds first, has none: then
    the installed one, if it was installed from the same Python files."""
    here = Path(__file__).resolve().parent
    if importlib.util.find_spec("frcnn_ops._C") is None:
        others = (Path(folder or ".").resolve() / "frcnn_ops" for folder in sys.path)
        installed = next((other for other in others if other != here and any(other.glob("_C.*"))), None)
        if installed is None:
            _refuse(
                "frcnn_ops is not compiled: run `pip install --no-build-isolation .` (or `-e .` to edit it) "
                "in the folder that holds its setup.py, with torch installed."
            )
        if not _same_sources(here, installed):
            _refuse(
                f"Python found the source folder {here}, which is not compiled, before the installed "
                f"{installed}, which has other sources: run `pip install --no-build-isolation .` in the "
                "folder that holds setup.py, or the command from another folder."
            )
        sys.modules["frcnn_ops"].__path__.append(str(installed))
    try:
        return importlib.import_module("frcnn_ops._C")
    except ImportError as error:
        _refuse(
            f"the compiled part of frcnn_ops does not load with torch {torch.__version__}; it needs torch "
            "2.10 or later, on the kind of machine it was compiled for. Otherwise run `pip install "
            "--no-build-isolation --no-deps --force-reinstall .` in the folder that holds its setup.py. "
            f"The loader says: {error}",
            error,
        )


def _same_sources(one: Path, other: Path) -> bool:
    names = {path.name for folder in (one, other) for path in folder.glob("*.py")}
    return filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


def _refuse(sentence: str, cause: ImportError | None = None) -> NoReturn:
    if sys.argv[:1] == ["-m"]:  # `python -m frcnn_ops` would put a sentence of its own around this one
        sys.exit(sentence)
    raise ImportError(sentence, name="frcnn_ops") from cause


_C = _compiled()
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
