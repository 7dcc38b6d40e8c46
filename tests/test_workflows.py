"""What runs in public: workflows that parse, are pinned, may do little, and call what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import frcnn

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
yaml = pytest.importorskip("yaml", reason="PyYAML is of the extra test")


def parsed(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def jobs() -> list:
    return [
        pytest.param(path, name, job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in parsed(path)["jobs"].items()
    ]


def test_there_are_tests_wheels_sanitizers_and_docs():
    assert {path.stem for path in WORKFLOWS} == {"tests", "wheels", "sanitizers", "docs"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_knows_no_secret(path):
    content = parsed(path)
    assert content.keys() <= {"name", True, "permissions", "concurrency", "env", "jobs"}  # YAML's "on"
    assert content["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for name, job in content["jobs"].items():
        assert "permissions" not in job or (name == "publish" and job["permissions"] == {"id-token": "write"})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_a_commit_and_says_its_version(path):
    used = re.findall(r"uses: (.+)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    for tool in re.findall(r"pipx run (\S+)", path.read_text()):
        assert re.fullmatch(r"[\w-]+==[\d.]+", tool), tool


@pytest.mark.parametrize(("path", "name", "job"), jobs())
def test_what_a_job_calls_is_there(path, name, job):
    assert job.keys() <= {
        "name", "runs-on", "if", "needs", "environment", "permissions", "strategy", "env", "steps",
        "timeout-minutes", "container",
    }  # fmt: skip
    assert set(job.get("needs", [])) <= parsed(path)["jobs"].keys()
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", makefile, re.M)[1].replace("\\\n", " ").split()
    matrix = job.get("strategy", {}).get("matrix", {})
    keys = set(matrix) | {key for entry in matrix.get("include", []) for key in entry}
    text = yaml.safe_dump(job)
    assert {key for key in re.findall(r"matrix\.(\w+)", text)} <= keys
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert step.keys() <= {"name", "run", "uses", "with", "if", "env", "working-directory"}
        for target in re.findall(r"\bmake (\w[\w-]*)", step.get("run", "")):
            assert target in targets, f"make {target}"


def test_a_wheel_is_tried_by_a_target_that_is_there():
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    (target,) = re.findall(r"make -C \{project\} ([\w-]+)", project)
    assert re.search(rf"^{target}:", makefile, re.M)
    assert "cibuildwheel==" in (ROOT / ".github" / "workflows" / "wheels.yml").read_text()


@pytest.mark.parametrize("file", [".pre-commit-config.yaml", "CITATION.cff"])
def test_other_files_parse(file):
    content = parsed(ROOT / file)
    if file == "CITATION.cff":
        assert content["version"] == frcnn.__version__
    else:
        assert all(repo["repo"] == "local" for repo in content["repos"])


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = set(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    oldest = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements" / "oldest.txt").read_text(), re.M)
    )
    for package, bound in bounds:
        if package in ("setuptools",):
            continue
        assert oldest[package].split(".")[: bound.count(".") + 1] == bound.split("."), package
