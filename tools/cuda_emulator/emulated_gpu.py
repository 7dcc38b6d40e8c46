"""Runs a command on an emulated GPU: `python tools/cuda_emulator/emulated_gpu.py COMMAND …`

The interpreter must have a CUDA build of torch and frcnn_ops compiled for CUDA (FORCE_CUDA=1). Nothing here
needs a GPU or a driver. `--arch 8.6` chooses the GPU, `--devices 2` how many. Within the command, `record`
counts what happens on the device.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "runtime"
CSRC = HERE.parents[1] / "csrc"


# ---- in the process that starts the command ----------------------------------------------------------------


def build(arch: str) -> dict[str, str]:
    """Compile what has changed; returns the environment variables of a process on the emulated device."""
    import torch

    sys.path.insert(0, str(HERE.parents[1] / "tests" / "cpp"))
    from emulated import build as build_kernels

    if torch.version.cuda is None:
        raise SystemExit(f"{sys.executable} has torch {torch.__version__}, which was built without CUDA")
    include = [f"-I{cuda_home() / 'include'}"]
    of_torch = [RUNTIME / "aten.cpp", RUNTIME / "cudnn.cpp"]
    sources = sorted(set(RUNTIME.glob("*.cpp")) - set(of_torch))
    library = link("libemulated_gpu.so", sources, ["-std=c++17", *include], ["-ldl", "-lrt", "-pthread"])
    driver = link("libcuda.so.1", [RUNTIME / "driver.c"], ["-x", "c"], [])
    installed = Path(torch.__file__).parent
    headers = [f"-isystem{installed / 'include'}", f"-isystem{installed / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{installed / 'lib'}", "-lc10", "-lc10_cuda", "-ltorch_cpu", "-ltorch_cuda"]
    aten = link("libemulated_aten.so", of_torch, ["-std=c++20", *include, *headers], libraries)
    kernels = build_kernels("device")
    symbols = Path(f"{kernels}.symbols")
    if not symbols.exists():
        listed = subprocess.run(["nm", kernels], check=True, capture_output=True, text=True).stdout
        symbols.write_text(listed)
    return {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [str(driver.parent), os.environ.get("LD_LIBRARY_PATH")])
        ),
        "EMULATED_GPU_LIBRARY": str(library),
        "EMULATED_GPU_ATEN": str(aten),
        "EMULATED_GPU_KERNELS": str(kernels),
        "EMULATED_GPU_RESOURCES": str(resources(arch)),
    }


def link(name: str, sources: list[Path], flags: list[str], libraries: list[str]) -> Path:
    """A shared library of this name, in a folder of its own for every version of its sources."""
    command = [
        os.environ.get("CXX", "g++"),
        "-O1",
        "-g1",
        "-fPIC",
        "-shared",
        *flags,
        *map(str, sources),
        *libraries,
    ]
    read = b"".join(file.read_bytes() for file in [*sources, *sorted(RUNTIME.glob("*.h"))])
    version = hashlib.sha256(read + repr(command).encode()).hexdigest()[:16]
    library = HERE.parents[1] / "build" / "emulated" / "gpu" / version / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        scratch = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", scratch], check=True)
        scratch.replace(library)
    return library


def cuda_home() -> Path:
    """The toolkit whose headers the runtime is compiled with."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (home / "include" / "cuda_runtime_api.h").is_file():
        raise SystemExit(f"{home} has no include/cuda_runtime_api.h: set CUDA_HOME to a CUDA toolkit")
    return home


def resources(arch: str) -> Path:
    """A file of every kernel's registers and static shared memory, as compiled for this compute capability.

    Its names are those of the compiled extension, whose own code is read where it has the architecture.
    """
    # found by its place: to import it would load torch's CUDA library, which needs a driver
    package = Path(importlib.util.find_spec("frcnn_ops").origin).parent
    library = next(package.glob("_C*.so"))
    sources = [file for file in sorted(CSRC.rglob("*")) if file.suffix in (".cu", ".h")]
    version = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
    folder = HERE.parents[1] / "build" / "emulated" / "gpu"
    target = folder / f"resources-{arch}-{version}-{library.stat().st_mtime_ns}.txt"
    if not target.exists():
        sections = usage(library)
        if not sections:
            raise SystemExit(f"{library} has no kernels: build frcnn_ops with FORCE_CUDA=1")
        shipped = {name: found for _, names in sections for name, found in names.items()}
        code = f"sm_{arch.replace('.', '')}"
        own = dict(item for name, found in sections if name == code for item in found.items())
        if not own:
            compiled = {as_in_any_build(name): found for name, found in compile_for(code).items()}
            own = {name: compiled[as_in_any_build(name)] for name in shipped}
        # cuobjdump counts the KB that the system keeps of a block's shared memory; the GPU's limit does not
        system = 1024 if float(arch) >= 9.0 else 0
        lines = (f"{name} {r} {int(s) - system}\n" for name, (r, s) in own.items())
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines))
    return target


def usage(binary: Path) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """Of each architecture's code in a file: its name, and every kernel's registers and shared memory."""
    triton = Path(importlib.util.find_spec("triton").origin).parent
    command = [triton / "backends/nvidia/bin/cuobjdump", "--dump-resource-usage", binary]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = []
    for part in text.split("Resource usage:")[1:]:
        names = re.findall(r"Function (\S+?):\s+REG:(\d+).*?SHARED:(\d+)", part)
        found.append({name: (registers, shared) for name, registers, shared in names})
    archs = re.findall(r"^arch = (sm_\d+)a?$", text, re.MULTILINE) or [""] * len(found)
    return list(zip(archs, found, strict=True))


def compile_for(code: str) -> dict[str, tuple[str, str]]:
    """Every kernel's registers and shared memory on an architecture, compiled as setup.py does.

    Objects that `make cuda-check` left, and that are newer than all sources, are not compiled again.
    """
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    objects = [HERE.parents[1] / "build" / "kernels" / f"{source.stem}.o" for source in sources]
    changed = max(file.stat().st_mtime for file in CSRC.rglob("*") if file.suffix in (".cu", ".h"))
    if all(file.exists() and file.stat().st_mtime > changed for file in objects):
        sections = [section for file in objects for section in usage(file)]
        if any(arch == code for arch, _ in sections):
            return {name: found for arch, names in sections if arch == code for name, found in names.items()}
    nvcc = cuda_home() / "bin" / "nvcc"
    flags = ["-std=c++17", "-O3", "--fmad=false", f"-arch={code}", "-cubin"]
    found: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compiled(source: Path) -> dict[str, tuple[str, str]]:
            target = Path(folder) / f"{source.stem}.cubin"
            subprocess.run([nvcc, *flags, source, "-o", target], check=True)
            return usage(target)[0][1]

        for names in pool.map(compiled, sources):
            found |= names
    return found


def as_in_any_build(mangled: str) -> str:
    """nvcc names an anonymous namespace after the file and two numbers that differ between builds."""
    return re.sub(r"_GLOBAL__N__[0-9a-f]{8}_(\w+?)_cu_[0-9a-f]{8}", r"\1", mangled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="9.0", help="compute capability")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    environment = {**os.environ, **build(arguments.arch)}
    environment |= {"EMULATED_GPU_ARCH": arguments.arch, "EMULATED_GPUS": str(arguments.devices)}
    # every Python process of the command puts the operators in place before it does anything else
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE / "site"), os.environ.get("PYTHONPATH")])
    )
    os.execvpe(arguments.command[0], arguments.command, environment)


# ---- in a process on the emulated device ------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One call that reached the device."""

    op: str
    kind: str
    device: int
    stream: int
    """The stream's handle, as torch has it in `Stream.cuda_stream`: 0 is the default one, or none."""
    captured: bool
    bytes: int
    blocks: int
    threads: int
    name: str


def runtime() -> ctypes.CDLL:
    """The preloaded library."""
    return ctypes.CDLL(os.environ["EMULATED_GPU_LIBRARY"])


def faults() -> int:
    """How many faults this process has seen."""
    library = runtime()
    library.gpu_faults.restype = ctypes.c_long
    return library.gpu_faults()


def record(function: Callable[[], Any], every_call: bool = False) -> tuple[Any, list[Row]]:
    """What `function` returns, and what happened on the device meanwhile, in order.

    every_call: also a row of kind "call" for each entry point that was called, whatever it did.
    """
    library = runtime()
    library.gpu_log_start(every_call)
    try:
        result = function()
    finally:
        library.gpu_log_stop()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.tsv"
        library.gpu_log_write(str(file).encode())
        rows = [line.split("\t") for line in file.read_text(errors="replace").splitlines()]
    return result, [
        Row(op, kind, int(device), int(stream), captured == "1", int(size), int(blocks), int(threads), name)
        for op, kind, device, stream, captured, size, blocks, threads, name in rows
    ]


if __name__ == "__main__":
    main()
