"""What a pickle may contain here: records of tensors and arrays, and the few calls that make them.

Nothing in this file touches torch or runs anything a file names; `BUILDERS` is the whole list of calls that
`frcnn.checkpoint.safe_pickle` answers with anything other than an `Inert` object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_ARGUMENTS = 16
_MOST_DIMENSIONS = 16
_LARGEST = 2**62
_ARRAY_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class UnpickleError(ValueError):
    """The bytes are not a whole, well-formed pickle, or not one that a checkpoint has."""


class CutShort(UnpickleError):
    """The file ends before what it announces: as a rule, a download or a copy was not finished."""


@dataclass(eq=False)
class Inert:
    """Stands for an object of a class that is not read: it holds the class's name and nothing else."""

    path: str


@dataclass(frozen=True)
class Global:
    """A name in the pickle, "module.attribute"; it is never looked up anywhere but in the table below."""

    path: str


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers lie: element type (a name like "float32"), key in the file, length."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the file describes it; checked against its storage only when it is read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class ArrayDtype:
    """numpy dtype under construction; only numbers and booleans are read."""

    code: str
    order: str = "<"

    def numpy(self) -> np.dtype:
        if self.code not in _ARRAY_CODES or self.order not in ("<", ">", "=", "|"):
            raise UnpickleError(f"an array of dtype {self.code[:20]!r} is not read")
        return np.dtype(("<" if self.order == "|" else self.order) + self.code)


@dataclass(eq=False)
class ArrayRecord:
    """numpy array under construction: shape, dtype and raw bytes arrive after the object itself."""

    shape: tuple[int, ...] = (0,)
    dtype: ArrayDtype = field(default_factory=lambda: ArrayDtype("f4"))
    fortran: bool = False
    data: bytes | bytearray = b""

    def fill(self, state: Any) -> None:
        """Take (version, shape, dtype, fortran order, data); an array of objects keeps no data."""
        _, shape, dtype, fortran, data = state
        self.shape, self.dtype, self.fortran = integers(shape), _known_dtype(dtype), fortran is True
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        self.data = data if isinstance(data, bytes) else b""

    def numpy(self) -> np.ndarray:
        """The array. Raises UnpickleError if the bytes do not fit the shape."""
        dtype = self.dtype.numpy()
        if min((0, *self.shape)) < 0 or len(self.data) != dtype.itemsize * math.prod(self.shape):
            raise UnpickleError(f"an array of shape {self.shape} does not have {len(self.data)} bytes")
        flat = np.frombuffer(self.data, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def integers(values: Any) -> tuple[int, ...]:
    """A shape or stride: at most 16 numbers of 63 bits."""
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise UnpickleError("a tensor's shape or stride is no short tuple")
    for value in values:
        if type(value) is not int or not -_LARGEST < value < _LARGEST:
            raise UnpickleError("a tensor's shape or stride is not made of integers of 63 bits")
    return tuple(values)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    bits: Any = None,
) -> TensorRecord | Inert:
    if not isinstance(storage, Storage):
        return Inert(f"tensor of {storage.path}" if isinstance(storage, Inert) else "tensor without storage")
    if isinstance(bits, dict) and (bits.get("conj") or bits.get("neg")):
        return Inert("tensor that is conjugated or negated when read")
    (offset,) = integers((offset,))
    return TensorRecord(storage, offset, integers(shape), integers(stride))


def _subclassed_tensor(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with Python attributes, or of a subclass: the tensor alone."""
    path = getattr(function, "path", "")
    known = path in _TENSOR_BUILDERS and isinstance(arguments, tuple) and len(arguments) <= MOST_ARGUMENTS
    if not known:
        return Inert("tensor subclass")
    return _TENSOR_BUILDERS[path](*arguments)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> TensorRecord | Inert:
    """Newer element types live in byte storages and name their type beside it."""
    size = _ITEM_SIZES.get(getattr(dtype, "path", ""))
    if size is None or not isinstance(storage, Storage):
        return Inert("tensor of an unknown type")
    typed = Storage(dtype.path.removeprefix("torch."), storage.key, storage.numel // size)
    return _tensor(typed, offset, shape, stride)


def _parameter(value: Any, *_: Any) -> Any:
    return value


def _encode(text: Any = "", encoding: Any = "latin1") -> bytes:
    """How older protocols write bytes and bytearrays."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpickleError("bytes in an unknown encoding")
    return text.encode("latin1")


def _array(*_: Any) -> ArrayRecord:
    return ArrayRecord()


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> ArrayRecord:
    if not isinstance(data, bytes | bytearray):
        raise UnpickleError("an array whose numbers are no bytes")
    return ArrayRecord(integers(shape), _known_dtype(dtype), order == "F", data)


def _dtype(code: Any, *_: Any) -> ArrayDtype:
    if not isinstance(code, str):
        raise UnpickleError("an array's type is no text")
    return ArrayDtype(code)


def _known_dtype(dtype: Any) -> ArrayDtype:
    if not isinstance(dtype, ArrayDtype):
        raise UnpickleError("an array without a type")
    return dtype


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A numpy number as Python's int, float or bool."""
    if not isinstance(dtype, ArrayDtype) or dtype.code not in _ARRAY_CODES:
        return Inert("numpy scalar")
    return ArrayRecord((), dtype, False, _encode(data)).numpy().item()


def _list(values: Any = ()) -> list:
    if not isinstance(values, list | tuple):
        raise UnpickleError("a list made of something else")
    return list(values)


def _tuple(values: Any = ()) -> tuple:
    return tuple(_list(values))


def _text(value: Any = "", *_: Any) -> str:
    """torch.device and the like: kept as their text."""
    return value if isinstance(value, str) else ""


def _empty_dict(*_: Any) -> dict:
    """A defaultdict without its factory."""
    return {}


_TENSOR_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}

BUILDERS: dict[str, Callable[..., Any]] = _TENSOR_BUILDERS | {
    "torch._tensor._rebuild_from_type_v2": _subclassed_tensor,
    "collections.defaultdict": _empty_dict,
    "_codecs.encode": _encode,
    "torch.Size": _tuple,
    "torch.device": _text,
}
for _module in ("builtins", "__builtin__"):
    BUILDERS |= {f"{_module}.{kind}": _encode for kind in ("bytes", "bytearray")}
    BUILDERS |= {f"{_module}.{kind}": _list for kind in ("list", "set", "frozenset")}
    BUILDERS[f"{_module}.tuple"] = _tuple
for _module in ("numpy.core", "numpy._core"):
    BUILDERS |= {
        f"{_module}.multiarray._reconstruct": _array,
        f"{_module}.multiarray.scalar": _scalar,
        f"{_module}.numeric._frombuffer": _array_from_buffer,
    }
BUILDERS["numpy.dtype"] = _dtype

STORAGE_DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
    }.items()
} | {"torch.storage.UntypedStorage": "uint8", "torch.UntypedStorage": "uint8"}

_ITEM_SIZES = {"torch.uint16": 2, "torch.uint32": 4, "torch.uint64": 8, "torch.float8_e4m3fn": 1}
