"""What a caller chooses, checked: frozen dataclasses whose fields fit their annotations once they are made.

A field's annotation says what it may hold: int, float (whole numbers too), bool, str, Literal, tuple, another
dataclass, or one of these or None. Bounds are written beside the type: ``Annotated[float, Range(0, 1)]``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal


class OptionError(ValueError):
    """A parameter, or a word of the command line, has a value that it cannot have."""


def unknown(kind: str, word: str, known: Collection[str]) -> OptionError:
    """The error for a word that is none of the known ones; it names the nearest, or all if they are few."""
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if not near and len(known) <= 20:
        hint = f"; there are {', '.join(known)}"
    return OptionError(f"no {kind} {word!r}{hint}")


def check_known(kind: str, words: Iterable[str], known: Collection[str]) -> None:
    """Raise OptionError for the first word that is none of the known ones."""
    for word in words:
        if word not in known:
            raise unknown(kind, word, known)


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise OptionError for a value that is not a whole number in that range."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        upper = "or more" if most is None else f"to {most}"
        raise OptionError(f"{name}={value!r}: it is a whole number, {least} {upper}")


MOST_CHARACTERS = 4096
"""Of a class name, and of a file's in a data set."""

HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs."""


def is_name(value: Any) -> bool:
    """Whether a class can be called so: text without control characters, which a terminal would obey, and
    without halves of surrogate pairs, which no file takes and which end cv2's process."""
    return isinstance(value, str) and 0 < len(value) <= MOST_CHARACTERS and HARMFUL.search(value) is None


@dataclass(frozen=True)
class Range:
    """Least and greatest value of a number, or length of a tuple. NaN lies in no range."""

    low: float
    high: float

    def holds(self, value: Any) -> bool:
        return self.low <= (len(value) if isinstance(value, tuple) else value) <= self.high


class Checked:
    """Base class of checked dataclasses. Raises OptionError: the field, its value and what is expected."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if not fits(hints[field.name], getattr(self, field.name)):
                self._expect(False, field.name, described(hints[field.name]))

    def _expect(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            value = reprlib.repr(getattr(self, name))
            raise OptionError(f"{type(self).__name__}.{name} is {value}, expected {expected}")


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is what an annotation says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(arguments[0], value) and arguments[1].holds(value)
    if origin in (typing.Union, types.UnionType):
        return any(fits(option, value) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(kinds) == len(value) and all(map(fits, kinds, value))
    if kind in (int, float):  # True is an int to Python, but no number to people
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def described(kind: Any, plural: bool = False) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounds = f"{arguments[1].low:g} to {arguments[1].high:g}"
        if typing.get_origin(arguments[0]) is tuple:
            return f"{described(arguments[0])}, of length {bounds}"
        return f"{described(arguments[0], plural)} from {bounds}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(described, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is ... else f"{len(arguments)} "
        return f"a tuple of {count}{described(arguments[0], plural=True)}"
    names = {int: "whole number", float: "number", Path: "path", str: "text", bool: "True or False"}
    name = (names | {type(None): "None"}).get(kind, kind.__name__)
    return f"{name}s" if plural else name if name in ("text", "True or False", "None") else f"a {name}"
