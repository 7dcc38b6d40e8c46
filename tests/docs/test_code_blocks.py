"""Every code block of README, CONTRIBUTING and docs/ runs, page by page, each page in a clone of its own.

Python blocks of a page share their names, as a reader's session would. Recipes are small (stand_ins.py). What
a block would install goes to an environment of the clone, which sees the packages of the one that runs the
tests and no index. Comments in the page say what a block needs, and what it runs with here (blocks.py); one
that lacks something is checked without being run, and listed in the summary.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import stand_ins
import torch
from blocks import PYTHON, SHELL, Block, blocks_of, check, pages

import frcnn_ops

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = (
    ".ci .github benchmarks csrc docs examples frcnn frcnn_ops notebooks requirements tests tools".split()
)
"""The folders of a clone."""
LIMIT = 900.0
"""Seconds that a page may take on a busy machine."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What pages start from, made in another process, as this one shall keep the real recipes."""
    folder = tmp_path_factory.mktemp("prepared")
    code = "import pathlib, sys, stand_ins; stand_ins.prepare(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, check=True, cwd=folder, env=environment(ROOT, folder))
    return folder


@pytest.fixture
def clone(prepared) -> Path:
    """A clone beside the prepared folder, with what pages start from.

    Always the same path: what one page compiled there, others need not compile again.
    """
    folder = prepared.with_name("clone")
    folder.mkdir(exist_ok=True)
    for entry in folder.glob("*"):
        if entry.name != "build":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy2(entry, folder)
        elif entry.name in SOURCES:
            shutil.copytree(entry, folder / entry.name, symlinks=True)
    for extension in Path(frcnn_ops.__file__).parent.glob("_C*"):
        shutil.copy2(extension, folder / "frcnn_ops")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    make_environment(folder / ".venv")
    (folder / ".git").mkdir()  # marks the project's root for who checks its workflows
    return folder


def make_environment(folder: Path) -> None:
    """An environment whose packages and programs are those of the one that runs this, but for frcnn."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    seen = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (packages / "seen.pth").write_text("\n".join(seen))
    (folder / "bin" / "pip").write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    (folder / "bin" / "pip").chmod(0o755)
    for program in Path(sys.executable).parent.iterdir():
        link = folder / "bin" / program.name
        if program.name != "frcnn" and not link.exists():
            link.symlink_to(program)
    (folder / ".installed").touch()  # for make


def environment(clone: Path, prepared: Path) -> dict[str, str]:
    """Of a page's processes: the clone's code, the made downloads, our `frcnn` and SLURM before others.

    Nothing is downloaded, and compilation is quick rather than its result.
    """
    tests = [HERE / "every_process", HERE, HERE.parent, HERE.parent / "engine"]
    path = [clone, *tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [clone / ".bin", clone / ".venv" / "bin", HERE / "programs", Path(sys.executable).parent]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return {
        **os.environ,
        "PATH": os.pathsep.join(map(str, [*programs, os.environ["PATH"]])),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "TORCH_HOME": str(prepared / stand_ins.PUBLISHED),
        "STAND_INS": str(prepared),
        "OMP_NUM_THREADS": "1",
        "PORT": port,
        "PIP_NO_INDEX": "1",
        "FORCE_CUDA": "0",
        "CXXFLAGS": "-O0",
        "WANDB_MODE": "offline",
    }


def run_page(blocks: list[Block], clone: Path, prepared: Path) -> None:
    """Run a page's blocks in order. Raises AssertionError with what they printed, and where it ended."""
    content = [
        ["python" if b.language in PYTHON else "shell", str(b), b.run.replace("$PWD", str(clone))]
        for b in blocks
    ]
    done = subprocess.run(
        [clone / ".venv" / "bin" / "python", str(HERE / "session.py")],
        input=json.dumps(content),
        cwd=clone,
        env=environment(clone, prepared),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page(page, prepared, request, record_property):
    blocks = blocks_of(page)
    for block in blocks:
        check(block)
    code = [block for block in blocks if block.language in PYTHON | SHELL]
    live = [block for block in code if not block.reason]
    if live:
        run_page(live, request.getfixturevalue("clone"), prepared)
    if code:
        not_run = "; ".join(f"line {block.line}: {block.reason}" for block in code if block.reason)
        told = f"{len(live)} blocks of {page.name}"
        record_property("tried", f"{told}; only parsed: {not_run}" if not_run else told)


BROKEN = {
    "python that raises": "```python\nimport frcnn\nfrcnn.build('no_such_recipe')\n```",
    "a command that fails": "```sh\nfrcnn models no_such_recipe\n```",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_block_is_found(text, prepared, clone):
    (block,) = blocks_of(Path("planted.md"), text)
    with pytest.raises(AssertionError, match=r"planted.md:1"):
        run_page([block], clone, prepared)


UNRUN = "<!-- not run here: planted -->\n"
MALFORMED = {
    "no language": "```\ntext\n```",
    "an unknown language": "```pyhton\nx\n```",
    "no end": "```python\nx = 1\n",
    "python's syntax": UNRUN + "```python\nfor x in:\n```",
    "a shell's syntax": UNRUN + "```sh\nif true\n```",
    "an option": UNRUN
    + "```sh\ntorchrun --nproc-per-node 8 -m frcnn train small_r18_fpn --no-such-option 1\n```",
    "a value": UNRUN
    + "```sh\nfrcnn eval m.pth --annotations a.json --images i \\\n    --batch-size many\n```",
    "a missing option": UNRUN + "```sh\nfrcnn eval m.pth && true\n```",
    "words to be replaced that are not there": "<!-- here: eight => two -->\n```sh\ntrue\n```",
    "a target": UNRUN + "```sh\nmake wheels\n```",
    "a script": UNRUN + "```sh\npython benchmarks/no_such.py\n```",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_block_is_found_without_running_it(text, capsys):
    with pytest.raises((AssertionError, SyntaxError)):
        for block in blocks_of(Path("planted.md"), text):
            check(block)


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ("torch torch>=2.10 bash /dev/null", ""),
        ("torch>=999 absent>=1", "there is no torch>=999, absent>=1"),
        ("torch no_such_thing", "there is no no_such_thing"),
        ("/no/such/file bash", "there is no /no/such/file"),
        ("gpu", "" if torch.cuda.is_available() else "there is no gpu"),
    ],
)
def test_a_block_runs_where_what_it_needs_is(needs, reason):
    (block,) = blocks_of(Path("planted.md"), f"<!-- needs: {needs} -->\n```sh\ntrue\n```\n")
    assert block.reason == reason


def test_a_block_runs_with_other_words():
    text = "<!-- here: eight => two -->\n<!-- here: first => $PWD -->\n```sh\necho eight first eight\n```\n"
    (block,) = blocks_of(Path("planted.md"), text)
    assert (block.code, block.run) == ("echo eight first eight\n", "echo two $PWD two\n")


def test_only_what_builds_containers_never_runs():
    never = [page.name for page in pages() if "<!-- not run here: " in page.read_text()]
    assert never == ["install.md"]
    text = (ROOT / "docs" / "how-to" / "install.md").read_text()
    assert text.count("<!-- not run here: ") == 1
    assert "```sh\ndocker build" in text.partition("<!-- not run here: ")[2].partition("-->\n")[2][:20]


def test_reasons_stand_directly_above_their_blocks():
    text = (
        UNRUN + "\n```sh\nmake test\n```\n\n```sh\nmake lint\n```\n" + UNRUN + "text\n```sh\nmake demo\n```\n"
    )
    assert [block.reason for block in blocks_of(Path("planted.md"), text)] == ["planted", "", ""]
