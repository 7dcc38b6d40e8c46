"""What the documentation says of the code is there: stages, files, fields, names, targets."""

from __future__ import annotations

import dataclasses
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from blocks import make_targets

import frcnn
import frcnn_ops
from frcnn import cli

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "site"))
import architecture  # noqa: E402
import pages as generated  # noqa: E402

PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = [page for page in PAGES if page.parent.name in ("learn", "how-to", "explanation", "reference")]


def test_the_drawing_is_that_of_the_code():
    assert architecture.PATH.read_text() == architecture.draw(), "run python tools/site/architecture.py"


def test_every_page_of_the_site_is_there_and_every_page_is_in_the_site():
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r"- ([\w/-]+\.md)$", text, re.M))
    made = {"reference/command_line.md", "reference/recipe.md"}
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} | made


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_names_in_a_page_exist(page):
    text = page.read_text()
    for kind, field in re.findall(r"`(\w+Config)\.(\w+)`", text):
        found = getattr(import_module("frcnn.config"), kind)
        assert field in {entry.name for entry in dataclasses.fields(found)}, f"{kind}.{field}"
    for name in re.findall(r"`((?:frcnn|frcnn_ops|csrc|tools|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name
    for package, name in re.findall(r"\b(frcnn|frcnn_ops)\.([A-Za-z]\w*)\b(?!\.)", text):
        module = {"frcnn": frcnn, "frcnn_ops": frcnn_ops}[package]
        known = hasattr(module, name) or (ROOT / package / name).with_suffix(".py").is_file()
        assert known or (ROOT / package / name).is_dir(), f"{package}.{name}"
    for target in re.findall(r"`make ([\w-]+)", text):
        assert target in make_targets(), f"make {target}"


def test_the_page_about_installation_has_every_extra_and_every_dockerfile():
    project = (ROOT / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    text = (ROOT / "docs" / "how-to" / "install.md").read_text()
    table = text.partition("| extra |")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w-]+)`", "\n".join(re.findall(r"^\|([^|]+)\|", table, re.M)))
    assert sorted(named) == sorted(re.findall(r"^([\w-]+) = \[", extras, re.M))
    assert "docker build -t frcnn ." in text
    for path in ROOT.glob("Dockerfile.*"):
        assert path.name in text


@pytest.mark.parametrize("path", ["reference/python.md", "reference/operators.md"])
def test_what_the_reference_lists_exists_and_is_everything(path):
    listed = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / path).read_text(), re.M)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
    public = {"reference/python.md": frcnn, "reference/operators.md": frcnn_ops}[path].__all__
    elsewhere = {"Recipe"}  # has a page of its own
    assert set(public) - elsewhere <= {name.rpartition(".")[2] for name in listed}


def test_the_page_of_the_command_line_has_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    usage = re.search(r"\{([\w,]+)\}", capsys.readouterr().out)
    assert set(usage[1].split(",")) == set(generated.COMMANDS)
    assert "--reinit-heads" in generated.help_of("train")


def test_the_page_of_the_recipe_has_every_field():
    page = generated.recipe()
    for kind in generated.DATACLASSES:
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}` |" in page, f"{kind.__name__}.{field.name}"
    assert "0 chooses them by the box's size" in page


def test_every_lesson_of_a_kernel_has_its_roofline():
    text = (ROOT / "docs" / "explanation" / "kernels.md").read_text()
    wanted = re.findall(r"^<!-- roofline: (.+) -->$", text, re.M)
    assert len(wanted) > 8
    assert generated.on_page_markdown(text).count("| predicted |") == len(wanted)
    with pytest.raises(ValueError, match="no such kernel"):
        generated.roofline("no such kernel")
