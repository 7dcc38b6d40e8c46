"""Builds, links and imports the whole extension against a CUDA build of torch; no GPU is needed.

    python .ci/link_cuda.py [PYTHON]

PYTHON is the interpreter of an environment with a CUDA build of torch, setuptools and ninja
(default: this one, or FRCNN_CUDA_PYTHON). The tracked sources are copied to build/cuda_link, which stays, so
that a second run compiles only what changed. TORCH_CUDA_ARCH_LIST defaults to 8.0;9.0.
Succeeds with a message where that torch or nvcc is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "cuda_link"
CHECK = """
import pathlib, re, torch, frcnn_ops
info = frcnn_ops.build_info()
sources = "".join(p.read_text() for p in pathlib.Path("csrc/bindings").glob("*.cpp"))
bound = set(re.findall(r'FRCNN_OPERATOR\\(\\s*\\w+,\\s*"(\\w+)', sources))
registered = {name for name, devices in info["ops"].items() if "cuda" in devices}
print(f"torch {torch.__version__}, CUDA {info['cuda']}, {info['cuda_archs']}: {len(registered)} operators")
assert bound and bound == registered, f"registered {registered}, but the bindings have {bound}"
"""


def main() -> int:
    python = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FRCNN_CUDA_PYTHON", sys.executable)
    version = "import torch; print(torch.version.cuda or '')"
    probe = subprocess.run([python, "-c", version], text=True, capture_output=True)
    if probe.returncode != 0 or not probe.stdout.strip():
        print(f"not linked against CUDA: {python} has no CUDA build of torch")
        return 0
    environment = {"TORCH_CUDA_ARCH_LIST": "8.0;9.0", **os.environ, "FORCE_CUDA": "1"}
    if "CUDA_HOME" not in environment and Path("/usr/local/cuda/bin/nvcc").exists():
        environment["CUDA_HOME"] = "/usr/local/cuda"  # torch would take the folder above PATH's nvcc
    if "CUDA_HOME" not in environment and shutil.which("nvcc") is None:
        print("not linked against CUDA: there is no nvcc (put it on PATH or set CUDA_HOME)")
        return 0

    listed = subprocess.run(
        ["git", "ls-files", "csrc", "frcnn_ops", "setup.py", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split():
        source, target = ROOT / name, COPY / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    build = [python, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(build, cwd=COPY, env=environment, text=True, capture_output=True)
    if result.returncode != 0:
        print(result.stdout[-4000:], result.stderr[-4000:], sep="\n")
        return result.returncode
    return subprocess.run([python, "-c", CHECK], cwd=COPY, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
