"""Every code block of README, CONTRIBUTING and docs/ runs, page by page, each page in one folder of its own.

Python blocks of a page share their names, as a reader's session would. `frcnn` is the real command with
small recipes (stand_ins.py). A block behind `<!-- not run here: reason -->` is checked without being run,
and listed with the reason in the summary.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stand_ins
from blocks import PYTHON, SHELL, Block, blocks_of, check, pages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 900.0
"""Seconds that a page may take on a busy machine."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What pages start from, made in another process, as this one shall keep the real recipes."""
    folder = tmp_path_factory.mktemp("prepared")
    code = "import pathlib, sys, stand_ins; stand_ins.prepare(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, check=True, cwd=folder, env=environment(folder, folder))
    return folder


def environment(folder: Path, prepared: Path) -> dict[str, str]:
    """Of a page's processes: the repository's code, the made downloads, and our `frcnn` before others."""
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / ".bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": path,
        "TORCH_HOME": str(prepared / stand_ins.PUBLISHED),
        "OMP_NUM_THREADS": "1",
    }


def run_page(blocks: list[Block], folder: Path, prepared: Path) -> None:
    """Run a page's blocks in order. Raises AssertionError with what they printed, and where it ended."""
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    content = [["python" if b.language in PYTHON else "shell", str(b), b.code] for b in blocks]
    done = subprocess.run(
        [sys.executable, str(HERE / "session.py"), str(prepared)],
        input=json.dumps(content),
        cwd=folder,
        env=environment(folder, prepared),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page(page, prepared, tmp_path, record_property):
    blocks = blocks_of(page)
    for block in blocks:
        check(block)
    code = [block for block in blocks if block.language in PYTHON | SHELL]
    live = [block for block in code if not block.reason]
    if live:
        run_page(live, tmp_path, prepared)
    if code:
        not_run = "; ".join(f"line {block.line}: {block.reason}" for block in code if block.reason)
        told = f"{len(live)} blocks of {page.name}"
        record_property("tried", f"{told}; only parsed: {not_run}" if not_run else told)


BROKEN = {
    "python that raises": "```python\nimport frcnn\nfrcnn.build('no_such_recipe')\n```",
    "a command that fails": "```sh\nfrcnn models no_such_recipe\n```",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_block_is_found(text, prepared, tmp_path):
    (block,) = blocks_of(Path("planted.md"), text)
    with pytest.raises(AssertionError, match=r"planted.md:1"):
        run_page([block], tmp_path, prepared)


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
    "a target": UNRUN + "```sh\nmake wheels\n```",
    "a script": UNRUN + "```sh\npython benchmarks/no_such.py\n```",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_block_is_found_without_running_it(text, capsys):
    with pytest.raises((AssertionError, SyntaxError)):
        for block in blocks_of(Path("planted.md"), text):
            check(block)


def test_a_block_runs_where_its_packages_are():
    text = (
        "<!-- needs: torch -->\n```sh\ntrue\n```\n<!-- needs: torch no_such_package -->\n```sh\ntrue\n```\n"
    )
    assert [block.reason for block in blocks_of(Path("planted.md"), text)] == [
        "",
        "no_such_package not installed",
    ]


def test_reasons_stand_directly_above_their_blocks():
    text = (
        UNRUN + "\n```sh\nmake test\n```\n\n```sh\nmake lint\n```\n" + UNRUN + "text\n```sh\nmake demo\n```\n"
    )
    assert [block.reason for block in blocks_of(Path("planted.md"), text)] == ["planted", "", ""]
