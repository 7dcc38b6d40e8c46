"""Recipes as plain values, as checkpoints hold them, and back with every value checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from frcnn.checkpoint.torch_file import CheckpointError, shown

_LARGEST = 100_000  # classes, channels, proposals, epochs: what a file may ask for
_LONGEST_TUPLE = 64
_LONGEST_TEXT = 1000


def to_plain(value: Any) -> Any:
    """A dataclass as JSON-like values."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_plain(kind: Any, plain: Any, path: str = "recipe") -> Any:
    """The dataclass `kind` from what `to_plain` made of it; absent fields take their defaults.

    Args:
        path: where ``plain`` was found, for messages; a field's path is ``recipe.model.roi_head.nms_iou``.

    Raises:
        CheckpointError: an unknown field, or a value of another type or beyond what a recipe can ask for; the
            message names the field's path.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, plain, path)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if plain is None:
            return None
        (kind,) = (option for option in options if option is not types.NoneType)
        return from_plain(kind, plain, path)
    if origin is tuple:
        return _tuple(options, plain, path)
    if origin is typing.Literal:
        fits, wanted = any(type(plain) is type(o) and plain == o for o in options), f"one of {options}"
    elif kind is str:
        fits, wanted = type(plain) is str and len(plain) <= _LONGEST_TEXT, "a short text"
    elif kind is int:
        fits, wanted = type(plain) is int and abs(plain) <= _LARGEST, f"an integer up to {_LARGEST}"
    elif kind is float:
        fits = type(plain) in (int, float) and abs(plain) <= 1e30 and math.isfinite(plain)
        wanted = "a finite number"
    else:
        fits, wanted = type(plain) is kind, f"a {kind.__name__}"
    if not fits:
        raise CheckpointError(f"{path} is {shown(plain)}, not {wanted}")
    return plain


def _dataclass(kind: Any, plain: Any, path: str) -> Any:
    if not isinstance(plain, Mapping):
        raise CheckpointError(f"{path} is {shown(plain)}, not the fields of a {kind.__name__}")
    hints = typing.get_type_hints(kind)
    unknown = [name for name in plain if name not in hints]
    if unknown:
        names = ", ".join(sorted(shown(name) for name in unknown[:5]))
        near = difflib.get_close_matches(str(unknown[0])[:100], hints, n=1)
        hint = f", or {near[0]} is meant" if near else ""
        raise CheckpointError(
            f"{path}: {kind.__name__} has no {names}: the file comes from another version of frcnn{hint}"
        )
    values = {name: from_plain(hints[name], value, f"{path}.{name}") for name, value in plain.items()}
    try:
        return kind(**values)
    except (
        TypeError,
        ValueError,
    ) as error:  # a field without default is absent, or values contradict each other
        raise CheckpointError(f"{path}: {error}") from None


def _tuple(kinds: tuple[Any, ...], plain: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(plain, list | tuple) or len(plain) > _LONGEST_TUPLE:
        raise CheckpointError(f"{path} is {shown(plain)}, not a list of at most {_LONGEST_TUPLE}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(plain)
    if len(plain) != len(kinds):
        raise CheckpointError(f"{path} has {len(plain)} values, not {len(kinds)}")
    return tuple(
        from_plain(kind, value, f"{path}[{index}]")
        for index, (kind, value) in enumerate(zip(kinds, plain, strict=True))
    )
