"""The rules that keep the tree liveable: dependencies in one direction, one name per concept."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = sorted(
    {
        "assign_max_iou",
        "box_coder",
        "box_iou",
        "decode_proposals",
        "grid_anchors",
        "iou_loss",
        "nms",
        "roi_align",
    }
)


def python_files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no Python files under {package}"
    return files


def imported_modules(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
    return modules


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def is_torch_header(name: str) -> bool:
    return name.split("/")[0] in ("ATen", "c10", "torch", "pybind11")


def test_operators_never_import_the_model():
    for path in python_files("frcnn_ops"):
        packages = {module.split(".")[0] for module in imported_modules(path)}
        assert "frcnn" not in packages, f"{path.relative_to(ROOT)} imports frcnn"


def test_the_model_uses_the_operators_public_interface():
    for path in python_files("frcnn"):
        text = path.read_text()
        assert "torch.ops.frcnn_ops" not in text, f"{path.relative_to(ROOT)} goes around frcnn_ops"
        inner = {m for m in imported_modules(path) if m.startswith("frcnn_ops.")}
        assert not inner, f"{path.relative_to(ROOT)} imports {inner}; the public names are in frcnn_ops"


def test_only_tests_and_benchmarks_use_the_reference():
    for path in python_files("frcnn_ops"):
        if path.name != "reference.py":
            assert "reference" not in {m.split(".")[-1] for m in imported_modules(path)}
            assert not re.search(r"import reference|from \.reference", path.read_text()), path.name


def test_shared_arithmetic_and_cuda_kernels_know_nothing_of_torch():
    torch_free = [ROOT / "csrc" / "box.h", ROOT / "csrc" / "bilinear.h"]
    torch_free += sorted((ROOT / "csrc" / "cuda").glob("*.cu")) + sorted((ROOT / "csrc" / "cuda").glob("*.h"))
    assert len(torch_free) > 2
    for path in torch_free:
        assert not [name for name in included(path) if is_torch_header(name)], f"{path.name} includes torch"


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_one_name_in_every_tree(name):
    for place in (
        f"csrc/cpu/{name}.cpp",
        f"csrc/cuda/{name}.cu",
        f"frcnn_ops/{name}.py",
        f"tests/ops/test_{name}.py",
    ):
        assert (ROOT / place).is_file(), f"{place} is missing"


def test_every_operator_in_the_contract_is_called():
    schemas = set(re.findall(r'"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text()))
    assert {"nms_padded", "iou_loss_backward", "grid_anchors"} <= schemas
    calls = set()
    for path in python_files("frcnn_ops"):
        calls |= set(re.findall(r"torch\.ops\.frcnn_ops\.(\w+)", path.read_text()))
    assert calls == schemas


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    for tree in ("csrc", "frcnn", "frcnn_ops", "tests", "benchmarks"):
        for path in (ROOT / tree).rglob("*"):
            assert path.stem.removeprefix("test_") not in vague, f"{path.relative_to(ROOT)} says nothing"
