"""The CUDA kernels of csrc/cuda, run on the CPU: builds them as host C++ and calls their launchers.

Two builds of the same sources (see tools/cuda_emulator). ``load("checked")`` checks every access for
bounds, initialization and races itself. ``load("sanitized")`` is for a Python started with the address
sanitizer's library preloaded (see sanitized_environment); there the sanitizers stop the process at the first
fault.

Needs only numpy, g++ with C++20 and Linux.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EMULATOR = ROOT / "tools" / "cuda_emulator"
KERNELS = ROOT / "csrc" / "cuda"

COMMON_FLAGS = [
    "-std=c++20", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing",
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{EMULATOR}",
]  # fmt: skip
KERNEL_FLAGS = {
    # only their calls: checker.cpp and alignment.cpp stand in for the libraries
    "checked": ["-fsanitize=thread,alignment", "-Wno-tsan"],
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "device": ["-O2", "-fsanitize=alignment"],  # for tools/cuda_emulator/emulated_gpu.py
    "counted": ["-fsanitize=thread", "-Wno-tsan"],  # for tools/cuda_emulator/report
}
HARNESS_FLAGS = {
    "checked": [],
    "sanitized": [*KERNEL_FLAGS["sanitized"], "-DEMULATOR_UNCHECKED"],
    "device": ["-DEMULATOR_UNCHECKED"],
    "counted": ["-DEMULATOR_COUNTED"],
}


class KernelFault(AssertionError):
    """A kernel read or wrote what it must not, or its launch failed."""


@functools.cache
def compiler() -> str | None:
    """The g++ with C++20 that the emulator needs (clang calls the memory checker differently), or None."""
    probe = "#include <source_location>\n#include <ucontext.h>\n#ifdef __clang__\n#error\n#endif\n"
    for name in (os.environ.get("CXX"), "g++", "g++-14", "g++-13", "g++-12", "g++-11"):
        found = shutil.which(name) if name else None
        if found is None:
            continue
        check = [found, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
        if subprocess.run(check, input=probe, text=True, capture_output=True).returncode == 0:
            return found
    return None


@functools.cache
def sanitizer() -> str | None:
    """The address sanitizer's library, which a Python has to preload, or None where it is not installed."""
    if compiler() is None:
        return None
    command = [compiler(), "-print-file-name=libasan.so"]
    path = subprocess.run(command, text=True, capture_output=True).stdout.strip()
    return path if Path(path).is_absolute() else None


def sanitized_environment() -> dict[str, str]:
    """The environment in which a child Python can load the sanitized build."""
    options = "detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=0"
    return {**os.environ, "LD_PRELOAD": sanitizer() or "", "ASAN_OPTIONS": options}


def build(variant: str) -> Path:
    """Compile what has changed since the last build and link it; returns the shared library's path."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("no C++20 compiler: install g++ 11 or newer, or set CXX")
    folder = ROOT / "build" / "emulated" / variant
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted([*EMULATOR.glob("*.h"), *KERNELS.glob("*.h"), *(ROOT / "csrc").glob("*.h")])
    shared = hashlib.sha256(b"".join(p.read_bytes() for p in headers))

    jobs = []
    harness = set(EMULATOR.glob("*.cpp"))
    if variant == "sanitized":
        harness.remove(EMULATOR / "alignment.cpp")  # the library itself is there
    for source in sorted([*harness, EMULATOR / "planted.cu", *KERNELS.glob("*.cu")]):
        flags = COMMON_FLAGS + (KERNEL_FLAGS if source.suffix == ".cu" else HARNESS_FLAGS)[variant]
        digest = shared.copy()
        digest.update(source.read_bytes() + repr([cxx, flags]).encode())
        target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        jobs.append((target, [cxx, *flags, "-x", "c++", "-c", str(source)]))

    def compile_one(job: tuple[Path, list[str]]) -> None:
        target, command = job
        if target.exists():
            return
        scratch = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run([*command, "-o", str(scratch)], text=True, capture_output=True)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        scratch.replace(target)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(compile_one, jobs))

    objects = [str(target) for target, _ in jobs]
    library = folder / f"emulated-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        scratch = library.with_suffix(f".{os.getpid()}")
        link = [cxx, "-shared", "-o", str(scratch), *objects, *HARNESS_FLAGS[variant], "-ldl", "-pthread"]
        subprocess.run(link, check=True)
        scratch.replace(library)
        keep = {library.name, *(target.name for target, _ in jobs)}
        for stale in folder.iterdir():
            if stale.name not in keep and stale.suffix in (".o", ".so"):
                stale.unlink(missing_ok=True)
    return library


class Buffer:
    """Device memory holding an array of this shape and type."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype):
        self.address, self.shape, self.dtype = address, shape, dtype
        self.bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


class Device:
    """Emulated device memory and launches; use as a context manager, which frees the memory.

    Every launch draws the order in which blocks and threads run from `seed`.
    """

    def __init__(self, library: ctypes.CDLL, seed: int):
        self.library, self.buffers = library, []
        library.emulator_seed(ctypes.c_uint64(seed))

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        for b in self.buffers:
            self.library.emulator_free(ctypes.c_void_p(b.address), ctypes.c_size_t(b.bytes))

    def empty(self, shape: tuple[int, ...] | int, dtype: object = np.float32) -> Buffer:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        b = Buffer(0, shape, np.dtype(dtype))
        b.address = self.library.emulator_allocate(ctypes.c_size_t(b.bytes))
        self.buffers.append(b)
        return b

    def put(self, array: np.ndarray) -> Buffer:
        """A copy of the array's elements in C order."""
        array = np.ascontiguousarray(array)
        b = self.empty(array.shape, array.dtype)
        self.library.emulator_upload(
            ctypes.c_void_p(b.address), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(b.bytes)
        )
        return b

    def get(self, b: Buffer) -> np.ndarray:
        """The buffer's contents, all of which a kernel must have written."""
        out = np.empty(b.shape, b.dtype)
        whole = self.library.emulator_download(
            ctypes.c_void_p(out.ctypes.data), ctypes.c_void_p(b.address), ctypes.c_size_t(b.bytes)
        )
        if not whole:
            raise KernelFault("part of an output was never written")
        return out

    def call(self, name: str, *args: object) -> None:
        """Calls a launcher. Integers go as int64, floats as double, buffers and None as pointers."""
        function = getattr(self.library, name)
        function.restype = ctypes.c_int
        code = function(*(_to_c(a) for a in args), ctypes.c_void_p(None))
        reports = self.library.emulator_errors().decode()
        if code != 0 or reports:
            raise KernelFault(f"{name}: error {code}\n{_with_lines(reports, self.library._name)}")


def _to_c(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Buffer):
        return ctypes.c_void_p(value.address)
    if isinstance(value, (int, np.integer, bool)):
        return ctypes.c_int64(int(value))
    if isinstance(value, float):
        return ctypes.c_double(value)
    return value


def source_lines(library: str, places: Sequence[str]) -> list[str]:
    """FILE:LINE of code at these places of a library, in hexadecimal; of the kernel where a header's function
    that stands for one of CUDA's is inlined there."""
    command = ["addr2line", "-a", "-i", "-e", library, *places]
    found = subprocess.run(command, check=True, text=True, capture_output=True).stdout
    lines = []
    for frames in re.split(r"^0x[0-9a-f]+\n", found, flags=re.MULTILINE)[1:]:
        names = [name.split(" ")[0] for name in frames.splitlines()]
        lines.append(next((n for n in names if "/cuda_runtime.h:" not in n), names[-1]))
    return lines


def _with_lines(reports: str, library: str) -> str:
    """The reports with their program counters as file and line, where binutils are installed."""
    if shutil.which("addr2line") is None:
        return reports
    pattern = r"\[(0x[0-9a-f]+)\]"
    places = re.findall(pattern, reports)
    lines = iter(source_lines(library, places) if places else [])
    return re.sub(pattern, lambda _: f"at {next(lines)}", reports)


@functools.cache
def load(variant: str) -> ctypes.CDLL:
    """Build if needed, and load."""
    library = ctypes.CDLL(str(build(variant)))
    library.emulator_allocate.restype = ctypes.c_void_p
    library.emulator_download.restype = ctypes.c_bool
    library.emulator_errors.restype = ctypes.c_char_p
    return library


def device(seed: int = 0) -> Device:
    """A device of the checked build, or of the build that the environment variable FRCNN_EMULATED names."""
    return Device(load(os.environ.get("FRCNN_EMULATED", "checked")), seed)


# ---- arguments of launchers ------------------------------------------------------------------------------

Int = ctypes.c_int64
Double = ctypes.c_double
Pointer = ctypes.c_void_p
KINDS = {"float32": 0, "float64": 1, "half": 2, "bfloat16": 3}
"""FrcnnType of csrc/kernel_api.h. Arrays of half and bfloat16 are uint16."""


def kind_of(array: np.ndarray, kind: str | None = None) -> int:
    return KINDS[kind or array.dtype.name]


def doubles(values: Sequence[float]) -> ctypes.Array:
    return (Double * len(values))(*values)


def floats(values: Sequence[float]) -> ctypes.Array:
    return (ctypes.c_float * max(len(values), 1))(*values)


def ints(values: Sequence[int]) -> ctypes.Array:
    return (Int * max(len(values), 1))(*values)


def size_of(d: Device, name: str, *args: object) -> int:
    """What a function of the kernel API says about the size of a workspace."""
    function = getattr(d.library, name)
    function.restype = Int
    return function(*args)
