"""Weights files as plain values: PyTorch's zip format and its older one, and pickles of arrays.

Reading is lazy: only the tensors that are asked for are read, and compared with their checksums, so a
training checkpoint's optimizer state costs nothing where its weights are wanted. Nothing in a file is
executed (see `frcnn.checkpoint.safe_pickle`), and every length that a file claims is checked against the
bytes it has.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from frcnn.checkpoint.records import ArrayRecord, CutShort, TensorRecord, UnpickleError
from frcnn.checkpoint.safe_pickle import MOST_STEPS, Unpickled, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LONGEST_SHOWN = 200
_MOST_EXPANDED = 1 << 26  # elements of a tensor that repeats the numbers of a smaller storage
_FREE_BYTES = 1 << 24


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the message says why and what to do."""


DOWNLOAD_AGAIN = "download or copy it again"


@contextlib.contextmanager
def reading(path: str | Path, remedy: str = DOWNLOAD_AGAIN) -> Iterator[None]:
    """Names the file in every CheckpointError of the block, and makes any other exception one.

    The content of a file from a stranger can make the libraries below raise whatever they know (struct.error,
    OverflowError, RecursionError, torch's RuntimeError): all of it means that the file is no good.

    remedy: what to do about a file that is damaged.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except CutShort as error:
        raise CheckpointError(f"{path}: cut short ({error}); {remedy}") from error
    except Exception as error:
        said = shown(str(error) or type(error).__name__)
        raise CheckpointError(f"{path}: damaged or incomplete ({said}); {remedy}") from error


def shown(value: Any) -> str:
    """A value of a file as a message may show it: short, on one line, nested values by their kind only."""
    if type(value) is int and abs(value) >= 10**18:
        return f"an integer of {value.bit_length()} bits"
    if value is not None and not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"
    text = value[: _LONGEST_SHOWN + 1] if isinstance(value, str) else str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


@dataclass(frozen=True)
class Span:
    """Where bytes lie in a file that has at least ``size`` bytes. ``crc`` is their CRC-32; 0 where the writer
    left it out. ``in_zip``: at ``offset`` is the header of a zip file's member, and the bytes follow."""

    offset: int
    size: int
    crc: int = 0
    in_zip: bool = False

    def read(self, file: BinaryIO) -> np.ndarray:
        file.seek(self.offset)
        if self.in_zip:
            header = file.read(30)  # ends in the lengths of the name and of the padding that follow
            if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
                raise UnpickleError("a part of it is not where its directory says")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little"), 1)
        data = np.empty(
            self.size, np.uint8
        )  # unlike torch, numpy asks for huge pages, which are filled faster
        if file.readinto(data) != self.size:  # type: ignore[attr-defined]
            raise CutShort("it ends in the middle of a tensor")
        if self.crc and zlib.crc32(data.data) != self.crc:
            raise UnpickleError("bytes have changed since the file was written: their checksum is another")
        return data


@dataclass(frozen=True)
class TorchFile:
    """A file's content as `unpickle` returns it; `tensors` and `whole` read the numbers."""

    path: Path
    content: Unpickled
    storages: Mapping[str, Span] = field(default_factory=dict)
    """Where each storage's numbers lie, by its key."""
    remedy: str = DOWNLOAD_AGAIN

    def tensors(self, records: Mapping[str, TensorRecord | ArrayRecord]) -> dict[str, Tensor]:
        """Read tensors. Those that share a storage in the file share it in memory, as with ``torch.load``, so
        that each storage is read once and many views of one cost nothing.

        Raises:
            CheckpointError: one does not fit its storage, or the file is cut off.
        """
        with reading(self.path, self.remedy), open(self.path, "rb") as file:
            numbers = _Numbers(file, self.storages)
            return {name: numbers.tensor(record) for name, record in records.items()}

    def whole(self) -> Any:
        """The content with every tensor in its place, as ``torch.load(weights_only=True)`` returns it, but a
        container that is there twice is copied: whoever walks through the result comes to an end.

        Raises:
            CheckpointError: also for objects other than plain values, tensors and arrays, and for containers
                that hold themselves or, written out, far more than the file.
        """
        with reading(self.path, self.remedy), open(self.path, "rb") as file:
            numbers = _Numbers(file, self.storages)
            size = os.fstat(file.fileno()).st_size
            return _WrittenOut(numbers.tensor, size, self.remedy).copy(self.content.value)


class _WrittenOut:
    """Copies containers, and counts what the copy holds."""

    def __init__(
        self, tensor: Callable[[TensorRecord | ArrayRecord], Tensor], size: int, remedy: str
    ) -> None:
        self.tensor = tensor
        self.remedy = remedy
        self.values_left = MOST_STEPS
        self.bytes_left = 2 * size + _FREE_BYTES

    def copy(self, value: Any) -> Any:
        if isinstance(value, TensorRecord | ArrayRecord):
            value = self.tensor(value)
            self.bytes_left -= value.numel() * value.element_size()
        elif isinstance(value, str | bytes):
            self.bytes_left -= len(value)
        elif type(value) is int:
            self.bytes_left -= value.bit_length() // 8
        self.values_left -= 1
        if min(self.values_left, self.bytes_left) < 0:
            raise UnpickleError("its content, written out, is far larger than the file")
        if isinstance(value, dict):
            return {self.copy(key): self.copy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.copy(item) for item in value])
        if value is None or isinstance(value, Tensor | str | bytes | int | float):
            return value
        kind = shown(getattr(value, "path", type(value).__name__))
        raise CheckpointError(
            f"it holds an object of {kind}, and only plain values and tensors are read; {self.remedy}"
        )


class _Numbers:
    """Reads the tensors of an open file; each storage, and each record, once."""

    def __init__(self, file: BinaryIO, spans: Mapping[str, Span]) -> None:
        self.file = file
        self.spans = spans
        self.data: dict[str, np.ndarray] = {}
        self.storages: dict[tuple[str, str], Tensor] = {}  # by key and type: the numbers in one row
        self.tensors: dict[int, Tensor] = {}  # by the record's identity
        self.arrays_left = os.fstat(file.fileno()).st_size

    def tensor(self, record: TensorRecord | ArrayRecord) -> Tensor:
        tensor = self.tensors.get(id(record))
        if tensor is None:
            tensor = self._view(record) if isinstance(record, TensorRecord) else self._array(record)
            self.tensors[id(record)] = tensor
        return tensor

    def _array(self, record: ArrayRecord) -> Tensor:
        self.arrays_left -= len(record.data)
        if self.arrays_left < 0:
            raise UnpickleError("arrays share their numbers")
        return torch.from_numpy(np.ascontiguousarray(record.numpy()))

    def _view(self, record: TensorRecord) -> Tensor:
        shape, numel = record.shape, record.storage.numel
        numbers = self._storage(record)
        count, last = 1, record.offset
        for size, step in zip(shape, record.stride, strict=True):
            count *= size
            last += (size - 1) * step
        if min((record.offset, *shape, *record.stride)) < 0 or (count and last >= numel):
            raise UnpickleError(f"a tensor of shape {shape} does not fit its storage of {numel}")
        if count > max(numel, _MOST_EXPANDED):
            raise UnpickleError(f"a tensor of shape {shape} is expanded from a storage of {numel}")
        return numbers.as_strided(shape, record.stride, record.offset) if count else numbers.new_empty(shape)

    def _storage(self, record: TensorRecord) -> Tensor:
        key, kind, numel = record.storage.key, record.storage.dtype, record.storage.numel
        numbers = self.storages.get((key, kind))
        if numbers is None:
            if key not in self.data:
                self.data[key] = self.spans[key].read(self.file)
            data, dtype = self.data[key], getattr(torch, kind)
            numbers = torch.frombuffer(data, dtype=dtype) if data.size else torch.empty(0, dtype=dtype)
            self.storages[key, kind] = numbers
        if numbers.numel() != numel:
            raise UnpickleError(f"storage {shown(key)} has {numbers.numel()} numbers, not {numel}")
        return numbers


def read_torch_file(path: str | Path, remedy: str = DOWNLOAD_AGAIN) -> TorchFile:
    """Read a file written by ``torch.save`` (either format) or ``pickle.dump``.

    remedy: what messages say to do about a damaged file.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one; the message says which.
    """
    path = Path(path)
    with reading(path, remedy), open_file(path) as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise CutShort("it is empty")
        if start.startswith(b"PK\x03\x04"):
            return TorchFile(path, *_read_zip(file), remedy)
        if start[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
            return TorchFile(path, *_read_pickles(file), remedy)
        raise CheckpointError(_what_it_is(start))


def open_file(path: Path) -> BinaryIO:
    """Open a checkpoint for reading; to be called within `reading`."""
    if path.is_dir():
        raise CheckpointError("a folder, not a file")
    if not path.is_file():  # nor a pipe or a device, which might never end
        raise CheckpointError("no such file")
    return open(path, "rb")


def _read_zip(file: BinaryIO) -> tuple[Unpickled, dict[str, Span]]:
    if not zipfile.is_zipfile(file):
        raise CutShort("its end, which lists what it holds, is missing")
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    members = {member.filename: member for member in listed}
    if len(members) < len(listed):
        raise UnpickleError("two members have the same name")
    if sum(member.file_size for member in listed) > os.fstat(file.fileno()).st_size:
        raise UnpickleError("the members are larger than the file: compressed or overlapping")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError("a zip file, but not one that torch.save wrote")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in members:
        raise CheckpointError("a TorchScript program, not a checkpoint; programs are not read")
    order = members.get(f"{root}/byteorder")
    if order is not None:
        _check_byte_order(_span(order).read(file).tobytes() == b"little")
    data = _span(members[pickles[0]]).read(file)
    content = unpickle(io.BytesIO(data.data), len(data))
    missing = [key for key in content.storages if f"{root}/data/{key}" not in members]
    if missing:
        raise UnpickleError(f"storage {shown(missing[0])} is missing")
    return content, {key: _span(members[f"{root}/data/{key}"]) for key in content.storages}


def _span(member: zipfile.ZipInfo) -> Span:
    """torch.save stores members as they are; a compressed or encrypted one could unfold to any size."""
    stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    if not stored or member.file_size != member.compress_size:
        raise UnpickleError(f"{shown(member.filename)} is compressed, which torch.save never does")
    return Span(member.header_offset, member.file_size, member.CRC, in_zip=True)


def _check_byte_order(little: bool) -> None:
    if not little:
        raise CheckpointError("written on a big-endian machine; save it again on another")


def _read_pickles(file: BinaryIO) -> tuple[Unpickled, dict[str, Span]]:
    """One plain pickle, or torch.save's older format: several pickles, then the storages' numbers."""
    size = os.fstat(file.fileno()).st_size

    def following() -> Unpickled:
        return unpickle(file, size - file.tell())

    content = following()
    if content.value != _LEGACY_MAGIC:
        return content, {}
    if following().value != _LEGACY_PROTOCOL:
        raise CheckpointError("an unknown version of torch.save's older format")
    system = following().value
    _check_byte_order(not isinstance(system, dict) or system.get("little_endian") is not False)
    content = following()
    keys = following().value
    if not isinstance(keys, list):
        raise UnpickleError("no list of storages")
    spans = {}
    position = file.tell()
    for key in keys:
        storage = content.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise UnpickleError(f"storage {shown(key)} is of an unknown type")
        file.seek(position)
        if int.from_bytes(file.read(8), "little", signed=True) != storage.numel:
            raise UnpickleError(f"storage {shown(key)} is cut off or not the one announced")
        spans[key] = Span(position + 8, storage.numel * getattr(torch, storage.dtype).itemsize)
        position += 8 + spans[key].size
        if position > size:
            raise CutShort(f"{position - size} bytes are missing at the end")
    return content, spans


def _what_it_is(start: bytes) -> str:
    """What a file is that is no checkpoint, and what to do about it."""
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint; the download was answered with a page, fetch the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the checkpoint; run git lfs pull"
    if start[257:262] == b"ustar":
        return "a tar archive (torch.save before 0.2); load and save it with an older PyTorch first"
    return "not a checkpoint: neither torch.save, pickle nor safetensors wrote it"
