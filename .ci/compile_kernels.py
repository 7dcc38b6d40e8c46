"""Compiles every CUDA kernel with nvcc alone and reads what ptxas says about registers, stack and spills.

    python .ci/compile_kernels.py [--archs 80 90 120]    (default: all that setup.py builds for)

Warnings are errors. A spill or a stack frame is an error too, except in float64 kernels, which exist for
gradient checks. Needs nvcc (CUDA_HOME or PATH), no GPU and no torch; without nvcc it says so and succeeds.
The objects stay in build/kernels: the emulated GPU reads there what a kernel needs on an architecture.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda"
OBJECTS = ROOT / "build" / "kernels"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\d+)a?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    file: str
    name: str
    arch: int
    registers: int
    shared: int
    stack: int
    spills: int

    @property
    def clean(self) -> bool:
        return (self.stack == 0 and self.spills == 0) or "<double" in self.name

    def __str__(self) -> str:
        line = f"{self.file:21} {self.name:38} sm_{self.arch:<4} {self.registers:4} {self.shared:7}"
        return f"{line} {self.stack:6} {self.spills:7}" + ("" if self.clean else "   <- spills")


def find_nvcc() -> str | None:
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def shipped() -> list[int]:
    """What setup.py builds for where nobody chooses."""
    listed = re.search(r"^DEFAULT_ARCHS = \((.+)\)$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    return [int(arch.replace(".", "")) for arch in re.findall(r"\d+\.\d", listed[1])]


def demangle(name: str) -> str:
    """The kernel's name and template arguments, without its namespaces and parameters."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool:
        name = subprocess.run([tool, name], text=True, capture_output=True).stdout.strip() or name
    name = re.sub(r"\((anonymous namespace|int|bool)\)(::)?|<unnamed>::|frcnn::|void ", "", name)
    return name.split("(")[0]


def compile_one(nvcc: str, source: Path, archs: list[int]) -> tuple[list[Kernel], str]:
    """What ptxas reports, or the compiler's errors."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    flags = ["-std=c++17", "-O3", "--fmad=false", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra"]
    target = str(OBJECTS / f"{source.stem}.o")
    command = [nvcc, *flags, *targets, "-Xptxas=-v", "-c", str(source), "-o", target]
    result = subprocess.run(command, text=True, capture_output=True)
    if result.returncode != 0:
        return [], result.stdout + result.stderr
    kernels = []
    for m in ENTRY.finditer(result.stderr):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        kernels.append(
            Kernel(
                source.name,
                demangle(m["name"]),
                int(m["arch"]),
                int(m["registers"]),
                int(shared[1]) if shared else 0,
                int(m["stack"]),
                int(m["stores"]) + int(m["loads"]),
            )
        )
    if not kernels:
        return [], f"{source.name}: ptxas reported no kernel; its output has changed:\n{result.stderr}"
    return kernels, ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", type=int, nargs="+", help="compute capabilities times ten")
    archs = parser.parse_args().archs or shipped()
    nvcc = find_nvcc()
    if nvcc is None:
        print("CUDA kernels not compiled: there is no nvcc (put it on PATH or set CUDA_HOME)")
        return 0
    listed = subprocess.run([nvcc, "--list-gpu-arch"], text=True, capture_output=True).stdout
    supported = {int(a) for a in re.findall(r"compute_(\d+)", listed)}
    if missing := [a for a in archs if a not in supported]:
        print(f"nvcc does not compile for sm_{', sm_'.join(map(str, missing))}; those are left out")
    archs = [a for a in archs if a in supported]
    sources = sorted(KERNELS.glob("*.cu"))
    shutil.rmtree(OBJECTS, ignore_errors=True)
    OBJECTS.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda s: compile_one(nvcc, s, archs), sources))

    print(f"{'file':21} {'kernel':38} {'arch':7} {'regs':>4} {'shared':>7} {'stack':>6} {'spills':>7}")
    failed = False
    for kernels, errors in results:
        for kernel in sorted(kernels, key=lambda k: (k.name, k.arch)):
            print(kernel)
            failed |= not kernel.clean
        if errors:
            print(errors)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
