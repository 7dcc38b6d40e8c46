"""A hook of mkdocs: pages of the reference that are made from the code when the site is built.

`reference/command_line.md` is what `--help` prints, `reference/recipe.md` the fields of the dataclasses in
`frcnn/config.py`. Neither is a file in docs/, so neither can be out of date. A comment
`<!-- roofline: words -->` becomes the rows of docs/performance.md's predicted times whose workload has the
words.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from frcnn import cli, config
from frcnn.checked import described

PERFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
COMMANDS = (
    "train",
    "eval",
    "report",
    "compare",
    "plot",
    "detect",
    "models",
    "convert",
    "export",
    "verify",
    "data",
    "env",
)
OF_DATA = ("check", "convert", "show")
DATACLASSES = (
    config.Recipe,
    config.ModelConfig,
    config.BackboneConfig,
    config.RPNConfig,
    config.RoIHeadConfig,
    config.DataConfig,
    config.ScheduleConfig,
    config.Published,
)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this once it has found the files of docs/."""
    from mkdocs.structure.files import File

    for name, content in (("command_line", command_line()), ("recipe", recipe())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this for each page."""
    return re.sub(
        r"^<!-- roofline: (.+) -->$", lambda match: roofline(match[1]), markdown, flags=re.MULTILINE
    )


def roofline(workload: str) -> str:
    """The predicted times of a workload, as a table. Raises ValueError where there are none."""
    section = PERFORMANCE.read_text().partition("### Predicted times")[2].partition("\n#")[0]
    head, rule, *rows = [line for line in section.splitlines() if line.startswith("|")]
    chosen = [row for row in rows if workload in row.split(": `")[0]]
    if not chosen:
        raise ValueError(f"no predicted time of {workload!r} in {PERFORMANCE.name}")
    return "\n".join(["", head, rule, *chosen, ""])


def command_line() -> str:
    """The page of the command line."""
    parts = [
        "# Command line",
        "What `frcnn` and its commands print with `--help`. `python -m frcnn` is the same command, as "
        "torchrun needs it. Exit codes: 0 done; 2 the command line is wrong; 1 any other error, bad images "
        "in eval and detect included; 128 + n stopped by signal n, such as 130 by Ctrl-C.",
        f"```text\n{help_of()}\n```",
    ]
    for command in COMMANDS:
        parts += [f"## frcnn {command}", f"```text\n{help_of(command)}\n```"]
    for command in OF_DATA:
        parts += [f"## frcnn data {command}", f"```text\n{help_of('data', command)}\n```"]
    parts += [
        "## frcnn train, with a recipe",
        "Behind a recipe's name the help also lists every setting of the recipe, with its values as the "
        "defaults. The fields are explained in [Recipe fields](recipe.md).",
        f"```text\n{help_of('train', 'small_r18_fpn')}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def help_of(*words: str) -> str:
    """What `frcnn WORDS --help` prints, at a width that a page has room for, without boxes."""
    output = io.StringIO()
    plain = mock.patch.dict(os.environ, COLUMNS="84", NO_COLOR="1")
    with plain, contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def recipe() -> str:
    """The page of a recipe's fields."""
    parts = [
        "# Recipe fields",
        "A recipe is a frozen dataclass of frozen dataclasses (`frcnn/config.py`). In Python it is changed "
        "with `dataclasses.replace`, on the command line by an option for each field: "
        "`RoIHeadConfig.nms_iou` is `--model.roi-head.nms-iou`. A value outside its range is refused when "
        "the recipe is made, by a message that names the field. Lengths are in pixels of the network's "
        "input.",
    ]
    for kind in DATACLASSES:
        parts += [f"## {kind.__name__}", inspect.getdoc(kind) or ""]
        rows = [
            f"| `{name}` | {default} | {value}{f'<br>{text}' if text else ''} |"
            for name, value, default, text in fields(kind)
        ]
        parts.append("\n".join(["| field | default | what it may be |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def fields(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Of each field of a dataclass: its name, what it may be, its default and what stands below it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    explained = below_fields(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint, default = hints[field.name], field.default
        if dataclasses.is_dataclass(hint):
            name = hint.__name__  # type: ignore[union-attr]
            yield field.name, f"[{name}](#{name.lower()})", "its defaults", explained.get(field.name, "")
            continue
        required = default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        shown = "required" if required else f"`{default!r}`"
        yield field.name, words(hint), shown, explained.get(field.name, "")


def words(hint: Any) -> str:
    """What a field may be; another dataclass by its name."""
    given = [option for option in typing.get_args(hint) if isinstance(option, type)]
    options = [option for option in given if dataclasses.is_dataclass(option)]
    return f"{options[0].__name__} or None" if options else described(hint)


def below_fields(kind: type) -> dict[str, str]:
    """The strings that stand below a class's fields, in one line each."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[field.target.id] = " ".join(str(after.value.value).split())
    return found
