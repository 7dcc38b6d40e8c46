"""Pickles written opcode by opcode, and the three containers that checkpoints come in."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping

import numpy as np

HEADER = b"\x80\x04"
DEEP = b")" + b"\x85" * 200_000
"""A tuple in a tuple, 200,000 times: whoever hashes or shows it recurses."""
WIDE = b")" + b"2\x86" * 40
"""(x, x) of (x, x) of ..., 40 times: whoever hashes or shows it visits 2**40 tuples."""
WIDE_BY_MEMO = b")q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(40))
"""The same with opcodes that torch.save writes too."""
ARRAY = pickle.dumps(np.ones(4, np.float32), 2)[2:-1]
"""What stands for a tensor in a plain pickle."""


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    data = pickle.encode_long(value)
    return b"\x8b" + len(data).to_bytes(4, "little") + data


def name(path: str) -> bytes:
    """GLOBAL; ``path`` is "module attribute"."""
    module, attribute = path.split(" ")
    return b"c" + f"{module}\n{attribute}\n".encode()


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(path: str, *arguments: bytes) -> bytes:
    return name(path) + group(*arguments) + b"R"


def mapping(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def storage(key: bytes = text("0"), numel: bytes = integer(4), kind: str = "torch FloatStorage") -> bytes:
    return group(text("storage"), name(kind), key, text("cpu"), numel) + b"Q"


def numbers(*values: int) -> bytes:
    return group(*(integer(value) for value in values))


def tensor(
    shape: bytes = numbers(2, 2),
    stride: bytes = numbers(2, 1),
    offset: bytes = integer(0),
    held: bytes = storage(),
) -> bytes:
    hooks = call("collections OrderedDict")
    return call("torch._utils _rebuild_tensor_v2", held, offset, shape, stride, b"\x89", hooks)


def checkpoint(evil: bytes, weight: bytes | None = None) -> bytes:
    """A checkpoint with a weight and an evil entry."""
    entries = {"weight": tensor() if weight is None else weight, "evil": evil}
    return mapping({"meta": b"}", "state_dict": mapping(entries)})


def plain(value: bytes) -> bytes:
    return HEADER + value + b"."


def zipped(value: bytes, members: Mapping[str, bytes] | None = None) -> bytes:
    """As torch.save writes since 1.6; by default with one storage, "0", of four floats."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", plain(value))
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")
        for key, data in ({"x/data/0": bytes(16)} if members is None else members).items():
            archive.writestr(key, data)
    return buffer.getvalue()


def legacy(value: bytes, keys: bytes | None = None, data: bytes | None = None) -> bytes:
    """As torch.save wrote before 1.6; by default with one storage, "0", of four floats."""
    start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    keys = b"](" + text("0") + b"e" if keys is None else keys
    data = (4).to_bytes(8, "little") + bytes(16) if data is None else data
    return b"".join(pickle.dumps(part, 2) for part in start) + plain(value) + plain(keys) + data
