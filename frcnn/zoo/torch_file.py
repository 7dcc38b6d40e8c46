"""Weights files as plain values: PyTorch's zip format and its older one, and pickles of arrays.

Reading is lazy: only the tensors that are asked for are read, so a training checkpoint's optimiser state
costs nothing. Nothing in a file is executed (see `frcnn.zoo.unpickle`), and every length that a file claims
is checked against the bytes it has.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from frcnn.zoo.records import ArrayRecord, Storage, TensorRecord, UnpickleError
from frcnn.zoo.unpickle import Unpickled, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DAMAGE = (ValueError, zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, struct.error)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the message says why and what to do."""


@dataclass(frozen=True)
class TorchFile:
    """A file's content as `unpickle` returns it; `tensors` reads the numbers."""

    path: Path
    content: Unpickled
    archive: str | None = None
    """Folder of the zip file's members; None for the other formats."""
    storage_offsets: Mapping[str, int] | None = None
    """Older format: where in the file each storage's numbers begin."""

    def tensors(self, records: Mapping[str, TensorRecord | ArrayRecord]) -> dict[str, Tensor]:
        """Read tensors into memory of their own.

        Raises:
            CheckpointError: one does not fit its storage, or the file is cut off.
        """
        try:
            if self.archive is not None:
                with zipfile.ZipFile(self.path) as archive:
                    return self._read(records, lambda *storage: self._member(archive, *storage))
            with open(self.path, "rb") as file:
                return self._read(records, lambda *storage: self._slice(file, *storage))
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path}: damaged or incomplete ({error})") from error

    def _read(
        self,
        records: Mapping[str, TensorRecord | ArrayRecord],
        storage_bytes: Callable[[Storage, int], bytearray],
    ) -> dict[str, Tensor]:
        read = {}
        for name, record in records.items():
            if isinstance(record, ArrayRecord):
                read[name] = torch.from_numpy(np.ascontiguousarray(record.numpy()))
            else:
                read[name] = _tensor(record, storage_bytes)
        return read

    def _member(self, archive: zipfile.ZipFile, storage: Storage, size: int) -> bytearray:
        member = archive.getinfo(f"{self.archive}/data/{storage.key}")
        _check_stored(member)
        if member.file_size != size:
            raise UnpickleError(f"storage {storage.key} has {member.file_size} bytes, not {size}")
        return bytearray(archive.read(member))

    def _slice(self, file: BinaryIO, storage: Storage, size: int) -> bytearray:
        offset = (self.storage_offsets or {})[storage.key]
        if offset + size > os.fstat(file.fileno()).st_size:
            raise UnpickleError("the file ends in the middle of a tensor")
        file.seek(offset)
        return bytearray(file.read(size))


def _tensor(record: TensorRecord, storage_bytes: Callable[[Storage, int], bytearray]) -> Tensor:
    storage, shape, stride = record.storage, record.shape, record.stride
    numel = int(np.prod(shape, dtype=object)) if shape else 1
    last = record.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((record.offset, *shape, *stride)) < 0 or (
        numel and (numel > storage.numel or last >= storage.numel)
    ):
        raise UnpickleError(f"a tensor of shape {shape} does not fit its storage of {storage.numel}")
    dtype = getattr(torch, storage.dtype)
    if numel == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(storage_bytes(storage, storage.numel * dtype.itemsize), dtype=dtype)
    tensor = flat.as_strided(shape, stride, record.offset)
    return tensor if numel == storage.numel and tensor.is_contiguous() else tensor.contiguous().clone()


def read_torch_file(path: str | Path) -> TorchFile:
    """Read a file written by ``torch.save`` (either format) or ``pickle.dump``.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(512)
        file.seek(0)
        try:
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(path)
            if start[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
                return _read_pickles(path, file, os.fstat(file.fileno()).st_size)
        except CheckpointError:
            raise
        except _DAMAGE as error:
            raise CheckpointError(f"{path}: damaged or incomplete ({error})") from error
    raise CheckpointError(f"{path}: {_what_it_is(start)}")


def _read_zip(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: a zip file, but not one that torch.save wrote")
        root = pickles[0].removesuffix("/data.pkl")
        if f"{root}/constants.pkl" in names:
            raise CheckpointError(f"{path}: a TorchScript program, not a checkpoint; programs are not read")
        if f"{root}/byteorder" in names:
            member = archive.getinfo(f"{root}/byteorder")
            _check_stored(member)
            _check_byte_order(path, archive.read(member) == b"little")
        member = archive.getinfo(pickles[0])
        _check_stored(member)
        with archive.open(member) as file:
            return TorchFile(path, unpickle(file, member.file_size), archive=root)


def _check_stored(member: zipfile.ZipInfo) -> None:
    """torch.save stores as is; a compressed or encrypted member could unfold to any size."""
    stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    if not stored or member.file_size != member.compress_size:
        raise UnpickleError(f"{member.filename} is compressed, which torch.save never does")


def _check_byte_order(path: Path, little: bool) -> None:
    if not little:
        raise CheckpointError(f"{path}: written on a big-endian machine; save it again on another")


def _read_pickles(path: Path, file: BinaryIO, size: int) -> TorchFile:
    """One plain pickle, or torch.save's older format: several pickles, then the storages' numbers."""

    def following() -> Unpickled:
        return unpickle(file, size - file.tell())

    content = following()
    if content.value != _LEGACY_MAGIC:
        return TorchFile(path, content)
    if following().value != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{path}: an unknown version of torch.save's older format")
    system = following().value
    _check_byte_order(path, not isinstance(system, dict) or system.get("little_endian") is not False)
    content = following()
    keys = following().value
    offsets = {}
    position = file.tell()
    for key in keys:
        file.seek(position)
        header = file.read(8)
        storage = content.storages.get(str(key))
        if storage is None:
            raise UnpickleError(f"storage {key} is of an unknown type")
        if len(header) < 8 or int.from_bytes(header, "little", signed=True) != storage.numel:
            raise UnpickleError(f"storage {key} is cut off or not the one announced")
        offsets[storage.key] = position + 8
        position += 8 + storage.numel * getattr(torch, storage.dtype).itemsize
    if position > size:
        raise UnpickleError(f"{position - size} bytes are missing at the end")
    return TorchFile(path, content, storage_offsets=offsets)


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
