"""The fenced blocks of a Markdown page, and whether they are well-formed without being run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from packaging.version import Version

from frcnn import cli
from frcnn.command_line import _check, options

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\n`]*)$")
COMMENT = re.compile(r"^ *<!-- (?P<kind>needs|here|not run here): (?P<text>.+) -->$")
PYTHON, SHELL = {"python"}, {"sh", "bash"}
TEXT = {"text", "json", "toml", "yaml", "markdown", "cpp"}
"""Languages of blocks that are shown, not run."""


@dataclass(frozen=True)
class Block:
    """One fenced block. code: as it is shown; run: as it is run; reason: why it is not, empty if it is."""

    page: Path
    line: int
    language: str
    code: str
    run: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Every fenced block, in order. Comments, a line each, speak of the block that follows them:

    `<!-- needs: words -->`: it runs where these are: packages (torch>=2.11), programs, files, a gpu.
    `<!-- here: shown => run -->`: the test runs it with other words, such as two processes for eight.
    `<!-- not run here: reason -->`: it never runs.

    Raises AssertionError, naming the line, for a block without a language, an unknown one, or no end, and for
    words to be replaced that are not in it.
    """
    lines = (page.read_text() if text is None else text).splitlines()
    found: list[Block] = []
    comments: list[tuple[str, str]] = []
    number = 0
    while number < len(lines):
        start, opening = number + 1, FENCE.match(lines[number])
        if opening is None:
            if comment := COMMENT.match(lines[number]):
                comments.append((comment["kind"], comment["text"]))
            elif lines[number].strip():
                comments = []
            number += 1
            continue
        end = next((n for n in range(start, len(lines)) if lines[n].strip() == opening["fence"]), None)
        assert end is not None, f"{page.name}:{start}: the block has no end"
        language = opening["language"].strip()
        assert language in PYTHON | SHELL | TEXT, f"{page.name}:{start}: language {language!r}"
        code = "\n".join(line.removeprefix(opening["indent"]) for line in lines[start:end]) + "\n"
        run, reasons = code, []
        for kind, words in comments:
            if kind == "here":
                shown, arrow, instead = words.partition(" => ")
                assert arrow and shown in run, f"{page.name}:{start}: not in the block: {words!r}"
                run = run.replace(shown, instead)
            else:
                reasons.append(missing(words) if kind == "needs" else words)
        found.append(Block(page, start, language, code, run, "; ".join(filter(None, reasons))))
        number, comments = end + 1, []
    return found


def missing(needs: str) -> str:
    """Which of what a block needs is not here."""
    absent = [word for word in needs.split() if not is_here(word)]
    return f"there is no {', '.join(absent)}" if absent else ""


def is_here(word: str) -> bool:
    if word == "gpu":
        return torch.cuda.is_available()
    if word.startswith("/"):
        return Path(word).exists()
    if ">=" in word:
        name, bound = word.split(">=")
        return is_here(name) and Version(version(name)) >= Version(bound)
    return find_spec(word) is not None or shutil.which(word) is not None


def check(block: Block) -> None:
    """Raise for what cannot run: bad syntax, and in a shell's lines a `frcnn …` that the command refuses, a
    `make …` without such a target, a file of the repository that is not there."""
    if block.language in PYTHON:
        compile(block.code, str(block), "exec")
    if block.language in SHELL:
        done = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True)
        assert done.returncode == 0, f"{block}: {done.stderr}"
        for words in commands(block.code):
            check_command(words)


def commands(code: str) -> list[list[str]]:
    """The words of each command of a script; variables and $(…) stay as they are written."""
    joined = re.sub(r"\\\n\s*", " ", code)
    found = []
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def check_command(words: list[str]) -> None:
    """Raise for a command line of frcnn, make or python that could not work."""
    while words and re.match(r"\w+=", words[0]):  # NAME=value before the command
        words = words[1:]
    if not words:
        return
    if "frcnn" in words and words[words.index("frcnn") - 1] == "-m":
        check_frcnn(words[words.index("frcnn") + 1 :])
    elif words[0] == "frcnn":
        check_frcnn(words[1:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert targets, "make without a target"
        for target in targets:
            assert target in make_targets(), f"there is no `make {target}`"
    elif words[0] in ("python", "python3") and len(words) > 1 and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"


def check_frcnn(words: list[str]) -> None:
    """Raise OptionError or SystemExit for words that `frcnn` refuses; nothing is done."""

    def only_check(command, program, words):
        if not {"-h", "--help"} & set(words):
            _check(options(command), program, words, {})

    words = [word for word in words if not re.fullmatch(r"\$\{\w+\[@\]\}", word)]  # any number of words
    with mock.patch.object(cli, "call", only_check):
        try:
            cli.main(words)
        except SystemExit as end:
            assert not end.code, f"frcnn {' '.join(words)} is refused"


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return set(re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", makefile, re.M)[1].replace("\\\n", " ").split())
