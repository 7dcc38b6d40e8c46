"""The rules that keep the tree livable: dependencies in one direction, one name per concept."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))
CPU_ONLY = {"winograd_conv"}


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
        if path.parent.name != "reference":
            assert "reference" not in {m.split(".")[-1] for m in imported_modules(path)}
            assert not re.search(r"import reference|from \.reference", path.read_text()), path.name


def test_only_the_bindings_know_torch():
    files = [path for path in (ROOT / "csrc").rglob("*.*") if path.parent.name != "bindings"]
    assert len(files) > 20
    for path in files:
        assert not [name for name in included(path) if is_torch_header(name)], f"{path.name} includes torch"


def test_the_bindings_know_the_stable_abi_only():
    for path in (ROOT / "csrc" / "bindings").iterdir():
        headers = [name for name in included(path) if is_torch_header(name)]
        unstable = [h for h in headers if not h.startswith(("torch/csrc/stable/", "torch/headeronly/"))]
        assert not unstable, f"{path.name} includes {unstable}"


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_one_name_in_every_tree(name):
    for place in (f"csrc/bindings/{name}.cpp", f"frcnn_ops/{name}.py"):
        assert (ROOT / place).is_file(), f"{place} is missing"
    on_cuda = name not in CPU_ONLY
    assert any((ROOT / "csrc" / "cuda").glob(f"{name}*.cu")) == on_cuda
    assert (ROOT / "tests" / "cpp" / "operators" / f"{name}.py").is_file() == on_cuda


def test_every_operator_is_called():
    bindings = "".join(path.read_text() for path in (ROOT / "csrc" / "bindings").glob("*.cpp"))
    schemas = set(re.findall(r'FRCNN_(?:OPERATOR\(\s*\w+,|DEFINE\()\s*"(\w+)\(', bindings))
    assert {"nms_padded", "iou_loss_backward", "grid_anchors", "winograd_conv"} <= schemas
    calls = set()
    for path in python_files("frcnn_ops"):
        calls |= set(re.findall(r"torch\.ops\.frcnn_ops\.(\w+)", path.read_text()))
    assert calls == schemas


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    for tree in ("csrc", "frcnn", "frcnn_ops", "tests", "tools", "benchmarks"):
        for path in (ROOT / tree).rglob("*"):
            assert path.stem.removeprefix("test_") not in vague, f"{path.relative_to(ROOT)} says nothing"


def on_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when the module is imported: none in functions, none for type checkers only."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from on_import(node.body)
            yield from on_import(node.orelse)
        elif isinstance(node, ast.Try):
            parts = [node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody]
            yield from on_import([statement for part in parts for statement in part])


def reached_imports() -> dict[str, set[str]]:
    """For every module of frcnn: the modules of frcnn that importing it imports, directly or not.

    A package's __init__ counts where it is imported by name, not as the parent of a module.
    """
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files("frcnn")
    }
    direct: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set()
        for node in on_import(ast.parse(path.read_text()).body):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            else:
                assert node.level == 0, f"{path.relative_to(ROOT)} has a relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inner & files.keys() or {node.module}
        direct[module] = names & files.keys()
    reached = {}
    for module in direct:
        reached[module], waiting = set(), list(direct[module])
        while waiting:
            if (name := waiting.pop()) not in reached[module]:
                reached[module].add(name)
                waiting += direct[name]
    return reached


def test_no_circle_of_imports():
    assert not [module for module, reached in reached_imports().items() if module in reached]


def test_reading_a_checkpoint_does_not_import_the_network():
    network = {f"frcnn.{name}" for name in ("detector", "backbone", "fpn", "rpn", "roi_head", "conv")}
    reached = reached_imports()
    assert network <= reached.keys()
    for module in reached:
        if module.startswith("frcnn.checkpoint"):
            assert not reached[module] & network, f"{module} imports {reached[module] & network}"


def test_the_readme_names_every_file():
    layout = (ROOT / "README.md").read_text().partition("## Layout")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(frcnn(?:_ops)?/[\w/]+\.py)`", layout))
    named |= {f"frcnn_ops/{name}.py" for name in OPERATORS}  # by a rule: the file is named as the operator
    files = {str(path.relative_to(ROOT)) for name in ("frcnn", "frcnn_ops") for path in python_files(name)}
    files = {file for file in files if not file.startswith("frcnn_ops/reference/")}
    assert named == files, f"not in README: {sorted(files - named)}; not there: {sorted(named - files)}"


def test_every_import_of_ours_resolves():
    """Inside functions too, which nothing else looks at before they are called."""
    for folder in ("frcnn", "frcnn_ops", "benchmarks", "examples"):
        for path in python_files(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "frcnn":
                    module = importlib.import_module(node.module)
                    for alias in node.names:
                        found = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                        assert found, f"{path.relative_to(ROOT)}: no {alias.name} in {node.module}"


def test_the_faults_that_are_put_back_are_where_their_list_says():
    """A list that names other text would end an hour's run in its middle."""
    sys.path.insert(0, str(ROOT / "tests" / "emulated_gpu"))
    try:
        faults = importlib.import_module("undo_faults").FAULTS
    finally:
        sys.path.pop(0)
    assert len(faults) > 10
    for fault in faults:
        assert fault.mended in (ROOT / fault.file).read_text(), f"{fault.file} has no {fault.mended!r}"
        for tests in fault.tests.split():
            assert (ROOT / tests.partition("::")[0]).is_file(), f"there is no {tests}"
