"""The kernels' own checks of numbers, for what runs instead of a kernel: fakes and the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from .extension import library

CHECKS = {
    "grid_anchors": "IFFFf",
    "maps": "sIii",
    "max_keep": "i",
    "normalization": "FFi",
    "pooling": "sIFif",
    "proposals": "FFFfFffii",
    "resize": "Iiii",
    "samples": "sii",
    "selection": "Fffi",
    "winograd": "",
}
"""Parameters of the checks: s a string, i an integer, f a float, I and F a list of them."""


def check(what: str, *arguments: Any) -> None:
    """Asks frcnn_check_{what} of csrc/bindings/library.cpp.

    Raises:
        RuntimeError: where the kernel would, with the same text.
    """
    question = getattr(library, f"frcnn_check_{what}")
    question.restype = ctypes.c_char_p
    complaint = question(*(_as_c(kind, value) for kind, value in zip(CHECKS[what], arguments, strict=True)))
    if complaint is not None:
        raise RuntimeError(complaint.decode())


class _List(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))


def _as_c(kind: str, value: Any) -> Any:
    match kind:
        case "s":
            return value.encode()
        case "i":
            return ctypes.c_int64(_int64(value))
        case "f":
            return ctypes.c_double(value)
        case "I":
            return _list_as_c(ctypes.c_int64, [_int64(number) for number in value])
        case _:
            return _list_as_c(ctypes.c_double, value)


def _int64(value: Any) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise TypeError(f"{number} is no 64-bit integer")
    return number


def _list_as_c(item: type, values: Sequence) -> _List:
    array = (item * len(values))(*values)  # type: ignore[operator]
    made = _List(ctypes.addressof(array), len(values))
    made.array = array  # lives as long as what points to it
    return made
