"""The words of a command line, checked by the annotations of the function they call, before anything is done.

tyro reads the words and prints the help. Its error messages are boxes that speak of Python's types, so
whatever it would refuse is refused here first, in one sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

import tyro

from frcnn.checked import OptionError, described, fits, unknown

SHOWN = 80
"""Characters of a refused value that are repeated."""


@dataclass(frozen=True)
class Option:
    """A parameter of a command, or a field of a dataclass that is one.

    name: as Python spells it, with dots; alias: Class.field, as the dataclass's own messages have it.
    kind: its annotation.
    """

    name: str
    kind: Any
    alias: str | None = None
    required: bool = False
    positional: bool = False

    @property
    def spelling(self) -> str:
        """--schedule.clip-grad-norm, or NAME for what goes without one."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def flag(self) -> bool:
        return self.kind is bool and self.alias is None

    @property
    def count(self) -> int | None:
        """How many words are its value; None for all that follow."""
        if self.flag:
            return 0
        bare = _bare(self.kind)
        kind = bare.__origin__ if typing.get_origin(bare) is Annotated else bare
        if typing.get_origin(kind) is not tuple:
            return 1
        kinds = typing.get_args(kind)  # tyro takes all words for a tuple that may be None, too
        return len(kinds) if kind is self.kind and kinds[-1] is not ... else None

    def check(self, words: Sequence[str]) -> None:
        """Raise OptionError unless these words are a value of its kind."""
        if "" in words:
            raise OptionError(f"{self.spelling}: its value is empty; is a variable of the shell not set?")
        with contextlib.suppress(ValueError, KeyError):
            if fits(self.kind, _read(self.kind, words)):
                return
        expected = described(_bare(self.kind)).removeprefix("a tuple of ")
        told = " ".join(words)
        told = told if len(told) <= SHOWN else told[:SHOWN] + "…"
        raise OptionError(f"{self.spelling}{' ' if told else ''}{told}: expected {expected}")


def options(command: Callable[..., Any]) -> list[Option]:
    """A command's parameters; of those whose defaults are dataclasses, their fields."""
    kinds, full = typing.get_type_hints(command), typing.get_type_hints(command, include_extras=True)
    found: list[Option] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            found += _fields(name, parameter.default)
        else:
            # Python 3.10 writes an "or None" around the kind of what defaults to None
            positional = tyro.conf.Positional in getattr(_bare(full[name]), "__metadata__", ())
            required = parameter.default is parameter.empty
            found.append(Option(name, kinds[name], required=required, positional=positional))
    return found


def spellings(command: Callable[..., Any]) -> dict[str, str]:
    """How a command's options are spelled, by how messages of Python spell them."""
    found: dict[str, str] = {}
    for option in options(command):
        found |= {name: option.spelling for name in (option.name, option.alias) if name is not None}
        if option.name.startswith("no_"):
            positive = option.name.removeprefix("no_")
            found |= {f"{positive}=False": option.spelling, f"{positive}=True": f"no {option.spelling}"}
    return found


def call(command: Callable[..., Any], program: str, words: Sequence[str]) -> Any:
    """Call a command with the values that the words of its command line give. Raises OptionError."""
    if not {"-h", "--help"} & set(words):
        words = _check(options(command), program, words, getattr(command, "refused", {}))

    @functools.wraps(command)
    def bound(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(command, *values, **named)

    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            chosen = tyro.cli(bound, prog=program, args=words, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as end:
        if not end.code:  # help
            raise
        raise OptionError(_reason(end, refusal.getvalue())) from None
    return chosen()


def _check(
    known: Sequence[Option], program: str, words: Sequence[str], refused: Mapping[str, str]
) -> list[str]:
    """The words with those that go without an option last, wherever they stood. Refuses what names no option,
    a value that is none of its option, and an option that is missing.

    refused: options that there are not, but that are looked for, and why.
    """
    named = {option.spelling: option for option in known if not option.positional}
    places = [option for option in known if option.positional]
    missing = {o.spelling for o in known if o.required and not (o.positional and o.count is None)}
    free: list[str] = []
    ordered: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":  # what follows are no options, whatever they look like
            free, rest = [*free, *rest], []
        elif not _is_option(word):
            free.append(word)
        else:
            name, equals, value = word.partition("=")
            option = named.get(name.replace("_", "-"))
            for place in places:
                if name.strip("-") == place.name:
                    raise OptionError(f"{place.spelling} goes without {name}: {program} {place.spelling} …")
            if name in refused:
                raise OptionError(f"{name}: {refused[name]}")
            if option is None:
                raise unknown(f"option of {program}:", name, sorted([*named, "--help"]))
            if option.flag and equals:
                raise OptionError(f"{word}: {option.spelling} takes no value")
            given = [value] if equals else []
            while rest and not _is_option(rest[0]) and rest[0] != "--" and len(given) != option.count:
                given.append(rest.pop(0))
            if not option.flag:
                option.check(given)
            ordered += [word] if equals else [word, *given]
            missing.discard(option.spelling)
    ordered += ["--", *free] if free else []
    for option in places:
        given, free = (free, []) if option.count is None else (free[:1], free[1:])
        if given:
            option.check(given)
            missing.discard(option.spelling)
    if free:
        near = difflib.get_close_matches("--" + free[0].replace("_", "-"), named, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; see {program} --help"
        raise OptionError(f"no use in {program} for {free[0]!r}{hint}")
    if missing:
        wanted = [option.spelling for option in known if option.spelling in missing]
        raise OptionError(f"missing {', '.join(wanted)}; see {program} --help")
    return ordered


def _is_option(word: str) -> bool:
    """Negative numbers are none."""
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()


def _fields(path: str, default: Any) -> Iterator[Option]:
    kinds = typing.get_type_hints(type(default), include_extras=True)
    for field in dataclasses.fields(default):
        name, value = f"{path}.{field.name}", getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(name, value)
        else:
            yield Option(name, kinds[field.name], f"{type(default).__name__}.{field.name}")


def _bare(kind: Any) -> Any:
    """A kind without its "or None"."""
    if typing.get_origin(kind) not in (typing.Union, UnionType):
        return kind
    (bare,) = (option for option in typing.get_args(kind) if option is not NoneType)
    return bare


def _read(kind: Any, words: Sequence[str]) -> Any:
    """The value of words. Raises ValueError or KeyError where they have none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _read(arguments[0], words)
    if _bare(kind) is not kind:
        return None if list(words) == ["None"] else _read(_bare(kind), words)
    if origin is tuple:
        kinds = arguments[:1] * len(words) if arguments[-1] is ... else arguments
        return tuple(_read(kind, [word]) for kind, word in zip(kinds, words, strict=True))
    (word,) = words
    if origin is Literal or kind is bool:
        choices = (True, False) if kind is bool else arguments
        return {str(choice): choice for choice in choices}[word]
    return kind(word)


def _reason(end: SystemExit, box: str) -> str:
    """Why tyro refused: what a dataclass said that it made, else the text of its box in one line."""
    error = end.__context__
    while error is not None:
        if isinstance(error, OptionError):
            return str(error)
        error = error.__context__
    text = re.split(r"─{9,} │|Argument helptext", box.partition("\n")[2])[0]
    return " ".join(re.sub("[╭╮╰╯─│]", " ", text).split())
