"""Compiles csrc/ into frcnn_ops/_C, with CUDA where torch has it and a matching nvcc exists.

FORCE_CUDA=1 or 0 overrides, TORCH_CUDA_ARCH_LIST chooses GPU architectures, CXX the compiler, MAX_JOBS the
number of parallel compilations, CXXFLAGS adds compiler options. No GPU has to be visible. The extension uses
torch's stable ABI of 2.10 and Python's of 3.10, so that it runs with every later one; CUDA's runtime is
inside it, unless FRCNN_CUDART=shared (the emulated device takes the runtime's place).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)
MINIMUM_SETUPTOOLS = (78,)  # as build-system.requires; 77 hands on options that torch's build does not take
MINIMUM_COMPILER = {"gcc": 11, "clang": 14}
# What to build for where neither TORCH_CUDA_ARCH_LIST nor a GPU says: A100, RTX 30, RTX 40, H100, B200 and
# RTX 50; the newest that nvcc knows also as PTX, which later GPUs compile on their own.
DEFAULT_ARCHS = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


class BuildError(SystemExit):
    """Stops the build with one sentence that says what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"\nfrcnn cannot be built: {sentence}\n")


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_setuptools(version: str) -> None:
    """Refuses one that cannot read pyproject.toml: without build isolation nothing else asks."""
    if version_of(version) < MINIMUM_SETUPTOOLS:
        raise BuildError(
            f"setuptools {version} is too old; run `pip install 'setuptools>={MINIMUM_SETUPTOOLS[0]}'` and "
            "build again."
        )


def check_torch(version: str | None) -> None:
    """Refuses a missing (None) or too old torch."""
    if version is None:
        raise BuildError(
            "PyTorch is not importable here (pip hides it from an isolated build); install torch >= 2.10 "
            "(pytorch.org tells how), then run `pip install --no-build-isolation .` in the same environment."
        )
    if version_of(version) < MINIMUM_TORCH:
        raise BuildError(f"torch {version} is too old; install torch >= 2.10 and build again.")


def check_compiler(name: str, version: str) -> None:
    """Refuses a gcc or clang that cannot compile torch's headers; others are left to try."""
    minimum = MINIMUM_COMPILER.get(name)
    if minimum is not None and version_of(version) < (minimum,):
        raise BuildError(
            f"{name} {version} is too old for torch's headers; install gcc >= {MINIMUM_COMPILER['gcc']} or "
            f"clang >= {MINIMUM_COMPILER['clang']} and name it in CXX (CXX=g++-12 pip install ...)."
        )


def use_cuda(force: str | None, torch_cuda: str | None, nvcc: str | None) -> bool:
    """Whether to compile the CUDA kernels.

    Args:
        force: FORCE_CUDA as set by the user, or None.
        torch_cuda: torch.version.cuda, None for a torch without CUDA.
        nvcc: version of the nvcc that torch's build would use, None if there is none.
    """
    if force not in (None, "", "0", "1"):
        raise BuildError(f"FORCE_CUDA is 0 or 1, not {force!r}.")
    if force == "0":
        return False
    if torch_cuda is None:
        if force == "1":
            raise BuildError(
                "FORCE_CUDA=1, but the installed torch was built without CUDA; install a CUDA build of "
                "torch or unset FORCE_CUDA."
            )
        return False
    if nvcc is None:
        if force == "1":
            raise BuildError(
                f"FORCE_CUDA=1, but there is no nvcc; install the CUDA {version_of(torch_cuda)[0]} toolkit "
                "and set CUDA_HOME to its folder, or unset FORCE_CUDA."
            )
        return False
    if version_of(nvcc)[0] != version_of(torch_cuda)[0]:
        raise BuildError(
            f"nvcc is CUDA {nvcc}, torch was built with CUDA {torch_cuda}; set CUDA_HOME to a CUDA "
            f"{version_of(torch_cuda)[0]} toolkit, or set FORCE_CUDA=0 to build for the CPU only."
        )
    return True


def version(cuda: str | None) -> str:
    """The package's version; a build with CUDA is another file than one without, and has another name."""
    plain = re.search(r'^__version__ = "(.+)"$', (ROOT / "frcnn" / "__init__.py").read_text(), re.MULTILINE)
    return plain[1] + (f"+cu{version_of(cuda)[0]}" if cuda else "")


def toolkit_on_path() -> str | None:
    """The toolkit of the nvcc on the PATH, as that says itself: it may be a link, or call another."""
    nvcc = shutil.which("nvcc")
    said = output_of(nvcc, "--dryrun", "-x", "cu", os.devnull, stream="stderr") if nvcc else None
    top = re.search(r"^#\$ TOP=(.+)$", said or "", re.MULTILINE)
    return os.path.realpath(top[1].strip()) if top else None


def check_toolkit(cuda_home: str) -> None:
    """Refuses a folder without CUDA's headers."""
    home = Path(cuda_home)
    if any(home.glob("include/cuda_runtime.h")) or any(home.glob("targets/*/include/cuda_runtime.h")):
        return
    raise BuildError(
        f"the CUDA toolkit's folder, {cuda_home}, has no include/cuda_runtime.h; set CUDA_HOME to the folder "
        "that holds the toolkit's bin and include, or FORCE_CUDA=0 to build for the CPU only."
    )


def default_archs(supported: set[str]) -> str:
    """TORCH_CUDA_ARCH_LIST for a build without a visible GPU; `supported` as nvcc lists them ("8.0")."""
    chosen = [arch for arch in DEFAULT_ARCHS if arch in supported]
    if not chosen:
        raise BuildError(
            f"nvcc supports none of the architectures {', '.join(DEFAULT_ARCHS)}; set TORCH_CUDA_ARCH_LIST."
        )
    return ";".join(chosen) + "+PTX"


def output_of(*command: str, stream: str = "stdout") -> str | None:
    """What a command prints on one of its streams, or None if it cannot be run."""
    try:
        return getattr(subprocess.run(command, check=True, capture_output=True, text=True), stream)
    except (OSError, subprocess.CalledProcessError):
        return None


def found_compiler() -> tuple[str, str]:
    """Name and version of the C++ compiler that torch's build will call."""
    command = os.environ.get("CXX", "c++").split()
    banner = output_of(*command, "--version")
    if banner is None:
        if sys.platform == "win32":  # msvc is found by torch itself
            return "msvc", ""
        raise BuildError(f"no C++ compiler: `{' '.join(command)}` does not run; install g++ or set CXX.")
    version = output_of(*command, "-dumpfullversion", "-dumpversion") or ""
    # Apple numbers its clang on its own; the oldest that still runs is new enough.
    name = "apple clang" if "Apple" in banner else "clang" if "clang" in banner else "gcc"
    return name, version.strip()


def found_nvcc(cuda_home: str | None) -> tuple[str | None, set[str]]:
    """Version of nvcc and the architectures it compiles for ("8.0"), or (None, set())."""
    if cuda_home is None:
        return None, set()
    nvcc = os.path.join(cuda_home, "bin", "nvcc")
    release = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version") or "")
    listed = re.findall(r"compute_(\d+)(\d)\b", output_of(nvcc, "--list-gpu-arch") or "")
    return (release[1] if release else None), {f"{major}.{minor}" for major, minor in listed}


def main() -> None:
    check_setuptools(setuptools.__version__)
    # pip puts ninja there, which is on the PATH of an activated environment only; without it, files are
    # compiled in turn
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    toolkit = given or toolkit_on_path()  # torch would take the folder above the one where nvcc was found
    if toolkit is not None:
        os.environ["CUDA_HOME"] = toolkit
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        check_torch(None)
    check_torch(torch.__version__)
    check_compiler(*found_compiler())
    nvcc, supported = found_nvcc(CUDA_HOME)
    force = os.environ.get("FORCE_CUDA")
    if given and torch.version.cuda and nvcc is None and force != "0":
        raise BuildError(
            f"CUDA_HOME is {given}, which has no bin/nvcc that runs; set it to a CUDA toolkit's folder, or "
            "set FORCE_CUDA=0 to build for the CPU only."
        )
    cuda = use_cuda(force, torch.version.cuda, nvcc)
    if cuda:
        check_toolkit(CUDA_HOME)
    elif torch.version.cuda and force != "0":
        print(
            f"frcnn is built for the CPU only, as there is no nvcc: for GPUs install a CUDA "
            f"{version_of(torch.version.cuda)[0]} toolkit and set CUDA_HOME to its folder",
            file=sys.stderr,
        )

    csrc = ROOT / "csrc"
    sources = [*csrc.glob("bindings/*.cpp"), *csrc.glob("cpu/*.cpp")]
    archs = ""
    if cuda:
        sources += csrc.glob("cuda/*.cu")
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(
                f"{major}.{minor}" for major, minor in sorted(visible)
            ) or default_archs(supported)
        archs = os.environ["TORCH_CUDA_ARCH_LIST"]

    # a*b+c is never contracted, on any device: IoUs that tie on the CPU have to tie on the GPU. Math errors
    # and floating-point traps are not observed, which lets loops vectorize; nothing here changes a result.
    cxx = ["/O2", "/fp:precise"] if sys.platform == "win32" else [
        "-O3",
        "-g0",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-implicit-fallthrough",  # in torch's headers
    ]  # fmt: skip
    cxx += os.environ.get("CXXFLAGS", "").split()  # last, so that they win
    extension = (CUDAExtension if cuda else CppExtension)(
        "frcnn_ops._C",
        sources=sorted(str(path.relative_to(ROOT)) for path in sources),
        depends=sorted(str(path.relative_to(ROOT)) for path in csrc.rglob("*.h")),
        include_dirs=[str(csrc)],
        py_limited_api=True,  # any Python from 3.10 on
        define_macros=[
            ("TORCH_TARGET_VERSION", "0x020a000000000000"),  # torch's stable ABI as of 2.10
            ("FRCNN_TORCH_VERSION", f'"{torch.__version__}"'),
            ("FRCNN_CUDA_VERSION", f'"{nvcc if cuda else ""}"'),
            ("FRCNN_CUDA_ARCHS", f'"{archs}"'),
            *([("FRCNN_CUDA", None), ("USE_CUDA", None)] if cuda else []),
        ],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "--fmad=false"]},
    )
    if cuda and os.environ.get("FRCNN_CUDART") != "shared":
        system = [] if sys.platform == "win32" else ["rt", "dl", "pthread"]
        extension.libraries.remove("cudart")
        extension.libraries += ["cudart_static", *system]
    setuptools.setup(
        version=version(nvcc if cuda and "sdist" not in sys.argv else None),  # sources are the same for all
        ext_modules=[extension],
        cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
