"""The fenced blocks of a Markdown page, and whether they are well-formed without being run."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from frcnn import cli
from frcnn.command_line import _check, options

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\n`]*)$")
NOT_RUN = re.compile(r"<!-- not run here: (?P<reason>[^>]+?) -->")
NEEDS = re.compile(r"<!-- needs: (?P<packages>[\w ]+) -->")
PYTHON, SHELL = {"python"}, {"sh", "bash"}
TEXT = {"text", "json", "toml", "yaml", "markdown", "cpp"}
"""Languages of blocks that are shown, not run."""


@dataclass(frozen=True)
class Block:
    """One fenced block. reason: why it is not run here, empty for one that is."""

    page: Path
    line: int
    language: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Every fenced block, in order. A comment `<!-- not run here: reason -->` speaks of the block below it,
    and so does `<!-- needs: packages -->`: that block runs where these are installed.

    Raises AssertionError, naming the line, for a block without a language, an unknown one, or no end.
    """
    lines = (page.read_text() if text is None else text).splitlines()
    found: list[Block] = []
    number, reason = 0, ""
    while number < len(lines):
        start, opening = number + 1, FENCE.match(lines[number])
        if opening is None:
            comment = NOT_RUN.search(lines[number])
            if comment or lines[number].strip():
                reason = comment["reason"] if comment else missing(lines[number])
            number += 1
            continue
        end = next((n for n in range(start, len(lines)) if lines[n].strip() == opening["fence"]), None)
        assert end is not None, f"{page.name}:{start}: the block has no end"
        language = opening["language"].strip()
        assert language in PYTHON | SHELL | TEXT, f"{page.name}:{start}: language {language!r}"
        code = "\n".join(line.removeprefix(opening["indent"]) for line in lines[start:end]) + "\n"
        found.append(Block(page, start, language, code, reason))
        number, reason = end + 1, ""
    return found


def missing(line: str) -> str:
    """Why the block below a line is not run: packages that it needs are not installed."""
    needs = NEEDS.search(line)
    absent = [name for name in needs["packages"].split() if find_spec(name) is None] if needs else []
    return f"{', '.join(absent)} not installed" if absent else ""


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
