"""docs/how-to/add_an_operator.md names files, and in each step things that are really in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "how-to" / "add_an_operator.md").read_text()
STEPS = re.findall(r"^\*\*(\d)\. `([\w/.]+)`(.*?)(?=^\*\*\d|^What the operator)", TEXT, re.M | re.S)
CODE = "".join(
    path.read_text()
    for folder in ("csrc", "frcnn_ops", "tests/cpp")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".cpp", ".cu", ".h", ".py")
)


def test_there_are_at_most_eight_edits():
    assert [int(number) for number, *_ in STEPS] == list(range(1, len(STEPS) + 1))
    assert 5 <= len(STEPS) <= 8


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:\w+/)+[\w.]+)`", TEXT))))
def test_a_file_that_it_names_exists(name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize(("file", "step"), [(file, step) for _, file, step in STEPS])
def test_what_a_step_mentions_is_in_the_code(file, step):
    assert "box_iou" in (ROOT / file).read_text(), f"{file} has no box_iou"
    for name in re.findall(r"`(\w+)[^`/]*`", step):
        assert re.search(rf"\b{name}\b", CODE), f"{name} is nowhere"


def test_nothing_else_lists_operators():
    """What builds and tests them, besides the files of the steps."""
    builds = [ROOT / "setup.py", ROOT / "CMakeLists.txt", *(ROOT / ".ci").iterdir()]
    for path in [*builds, *ROOT.glob("tests/cpp/*.py"), ROOT / "tests" / "test_layout.py"]:
        assert "box_iou" not in path.read_text(), f"{path.relative_to(ROOT)} lists box_iou"
