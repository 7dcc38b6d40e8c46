"""Weights files as plain values: PyTorch's zip format and its older one, and pickles of arrays.

Reading is lazy: only the tensors that are asked for are read, so a training checkpoint's optimiser state
costs nothing. Nothing in a file is executed (see `frcnn.checkpoint.safe_pickle`), and every length that a
file claims is checked against the bytes it has.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from frcnn.checkpoint.records import ArrayRecord, TensorRecord, UnpickleError
from frcnn.checkpoint.safe_pickle import Unpickled, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LONGEST_SHOWN = 200
_MOST_EXPANDED = 1 << 26  # elements of a tensor that repeats the numbers of a smaller storage


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the message says why and what to do."""


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Names the file in every CheckpointError of the block, and makes any other exception one.

    The content of a file from a stranger can make the libraries below raise whatever they know (struct.error,
    OverflowError, RecursionError, torch's RuntimeError): all of it means that the file is no good.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        said = shown(str(error) or type(error).__name__)
        raise CheckpointError(f"{path}: damaged or incomplete ({said})") from error


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
    """Where bytes lie in a file. ``crc`` is their CRC-32; 0 where the writer left it out."""

    offset: int
    size: int
    crc: int = 0

    def read(self, file: BinaryIO) -> bytearray:
        if self.offset < 0 or self.offset + self.size > os.fstat(file.fileno()).st_size:
            raise UnpickleError("the file ends in the middle of a tensor")
        data = bytearray(self.size)
        file.seek(self.offset)
        if file.readinto(data) != self.size:  # type: ignore[attr-defined]
            raise UnpickleError("the file ends in the middle of a tensor")
        if self.crc and zlib.crc32(data) != self.crc:
            raise UnpickleError("bytes have changed since the file was written: their checksum is another")
        return data


@dataclass(frozen=True)
class TorchFile:
    """A file's content as `unpickle` returns it; `tensors` reads the numbers."""

    path: Path
    content: Unpickled
    storages: Mapping[str, Span] = field(default_factory=dict)
    """Where each storage's numbers lie, by its key."""

    def tensors(self, records: Mapping[str, TensorRecord | ArrayRecord]) -> dict[str, Tensor]:
        """Read tensors. Those that share a storage in the file share it in memory, as with ``torch.load``, so
        that each storage is read once and many views of one cost nothing.

        Raises:
            CheckpointError: one does not fit its storage, or the file is cut off.
        """
        with reading(self.path), open(self.path, "rb") as file:
            read: dict[int, Tensor] = {}  # by the record's identity: several names may have the same one
            storages: dict[str, bytearray] = {}
            arrays_left = os.fstat(file.fileno()).st_size
            for record in records.values():
                if id(record) in read:
                    continue
                if isinstance(record, TensorRecord):
                    storage = record.storage
                    if storage.key not in storages:
                        storages[storage.key] = self.storages[storage.key].read(file)
                    read[id(record)] = _tensor(record, storages[storage.key])
                else:
                    arrays_left -= len(record.data)
                    if arrays_left < 0:
                        raise UnpickleError("arrays share their numbers")
                    read[id(record)] = torch.from_numpy(np.ascontiguousarray(record.numpy()))
            return {name: read[id(record)] for name, record in records.items()}


def _tensor(record: TensorRecord, data: bytearray) -> Tensor:
    storage, shape, stride = record.storage, record.shape, record.stride
    dtype = getattr(torch, storage.dtype)
    if len(data) != storage.numel * dtype.itemsize:
        raise UnpickleError(f"storage {shown(storage.key)} has {len(data)} bytes for {storage.numel} numbers")
    last = record.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((record.offset, *shape, *stride)) < 0 or (0 not in shape and last >= storage.numel):
        raise UnpickleError(f"a tensor of shape {shape} does not fit its storage of {storage.numel}")
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    if math.prod(shape) > max(storage.numel, _MOST_EXPANDED):
        raise UnpickleError(f"a tensor of shape {shape} is expanded from a storage of {storage.numel}")
    return torch.frombuffer(data, dtype=dtype).as_strided(shape, stride, record.offset)


def read_torch_file(path: str | Path) -> TorchFile:
    """Read a file written by ``torch.save`` (either format) or ``pickle.dump``.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one; the message says which.
    """
    path = Path(path)
    with reading(path), open_file(path) as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(path, file)
        if start[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
            return _read_pickles(path, file)
        raise CheckpointError(_what_it_is(start))


def open_file(path: Path) -> BinaryIO:
    """Open a checkpoint for reading; to be called within `reading`."""
    if path.is_dir():
        raise CheckpointError("a folder, not a file")
    if not path.is_file():  # nor a pipe or a device, which might never end
        raise CheckpointError("no such file")
    return open(path, "rb")


def _read_zip(path: Path, file: BinaryIO) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise UnpickleError("two members have the same name")
    if sum(member.file_size for member in members.values()) > os.fstat(file.fileno()).st_size:
        raise UnpickleError("the members are larger than the file: compressed or overlapping")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError("a zip file, but not one that torch.save wrote")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in members:
        raise CheckpointError("a TorchScript program, not a checkpoint; programs are not read")
    order = members.get(f"{root}/byteorder")
    if order is not None:
        _check_byte_order(_span(file, order).read(file) == b"little")
    data = _span(file, members[pickles[0]]).read(file)
    content = unpickle(io.BytesIO(data), len(data))
    wanted = {key: members[f"{root}/data/{key}"] for key in content.storages}
    return TorchFile(path, content, {key: _span(file, member) for key, member in wanted.items()})


def _span(file: BinaryIO, member: zipfile.ZipInfo) -> Span:
    """torch.save stores members as they are; a compressed or encrypted one could unfold to any size."""
    stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    if not stored or member.file_size != member.compress_size:
        raise UnpickleError(f"{shown(member.filename)} is compressed, which torch.save never does")
    file.seek(member.header_offset)
    header = file.read(30)  # ends in the lengths of the name and of the padding that come before the bytes
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise UnpickleError(f"{shown(member.filename)} is not where the directory says")
    name, padding = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return Span(member.header_offset + 30 + name + padding, member.file_size, member.CRC)


def _check_byte_order(little: bool) -> None:
    if not little:
        raise CheckpointError("written on a big-endian machine; save it again on another")


def _read_pickles(path: Path, file: BinaryIO) -> TorchFile:
    """One plain pickle, or torch.save's older format: several pickles, then the storages' numbers."""
    size = os.fstat(file.fileno()).st_size

    def following() -> Unpickled:
        return unpickle(file, size - file.tell())

    content = following()
    if content.value != _LEGACY_MAGIC:
        return TorchFile(path, content)
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
            raise UnpickleError(f"{position - size} bytes are missing at the end")
    return TorchFile(path, content, spans)


def _what_it_is(start: bytes) -> str:
    """What a file is that is no checkpoint, and what to do about it."""
    text = start.lstrip().lower()
    if not start:
        return "the file is empty; download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint; the download was answered with a page, fetch the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the checkpoint; run git lfs pull"
    if start[257:262] == b"ustar":
        return "a tar archive (torch.save before 0.2); load and save it with an older PyTorch first"
    return "not a checkpoint: neither torch.save, pickle nor safetensors wrote it"
