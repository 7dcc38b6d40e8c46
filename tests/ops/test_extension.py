"""The compiled extension: what it says about itself, and what it asks of torch, Python and the system."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import frcnn_ops
from frcnn_ops.extension import describe_build


def test_build_information():
    info = frcnn_ops.build_info()
    for version in (info["torch"], torch.__version__):  # which need not be the same
        assert tuple(map(int, re.findall(r"\d+", version)[:2])) >= (2, 10)
    assert re.match(r"(gcc|clang|msvc) \d+", info["compiler"])
    assert bool(info["cuda"]) == bool(info["cuda_archs"])
    assert len(info["ops"]) >= 13
    devices = ["cpu", "cuda"] if info["cuda"] else ["cpu"]
    for name, on in info["ops"].items():
        assert "cpu" in on and set(on) <= set(devices), f"{name} has kernels for {on}"
    text = describe_build()
    assert info["torch"] in text and "roi_align_backward" in text


def printed(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("readelf") is None or sys.platform != "linux", reason="no binutils")
def test_the_extension_asks_torch_and_python_for_what_is_stable_only():
    """So that one build runs with every torch from 2.10 and every Python from 3.10 on."""
    library = Path(frcnn_ops.extension.library._name)
    assert library.name == "_C.abi3.so"
    asked = {line.split(maxsplit=1)[1] for line in printed("nm", "-DCu", library).splitlines()}
    assert not [name for name in asked if re.search(r"\b(at|c10|torch|pybind11)::", name)]
    plain = {name.partition("@")[0] for name in asked}
    assert {name for name in plain if name.lstrip("_").startswith("Py")} == {"PyModule_Create2"}
    assert {name for name in plain if "torch" in name} >= {"torch_call_dispatcher", "torch_parallel_for"}
    allowed = r"libtorch\w*|libc10\w*|libstdc\+\+|libgcc_s|libm|libc|libpthread|librt|libdl|ld-linux[\w-]*"
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\.so", printed("readelf", "-d", library))
    assert needed and not [name for name in needed if not re.fullmatch(allowed, name)]
