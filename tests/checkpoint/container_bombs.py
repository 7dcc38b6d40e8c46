"""Bombs of containers: zip files, torch.save's older format, safetensors, and the recipes in them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator

from pickles import (
    DEEP,
    WIDE,
    checkpoint,
    integer,
    legacy,
    mapping,
    numbers,
    plain,
    storage,
    tensor,
    text,
    zipped,
)


def zip_bombs() -> Iterator[tuple[str, bytes]]:
    value = checkpoint(b"N")
    for title, compressed in {
        "data.pkl": "x/data.pkl",
        "storage": "x/data/0",
        "byte order": "x/byteorder",
    }.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for key, data in {
                "x/data.pkl": plain(value),
                "x/byteorder": b"little",
                "x/data/0": bytes(16),
            }.items():
                kind = zipfile.ZIP_DEFLATED if key == compressed else zipfile.ZIP_STORED
                archive.writestr(key, data + bytes(50_000_000 * (key == compressed)), kind)
        yield f"compressed {title}", buffer.getvalue()
    megabytes = {f"x/data/{key}": bytes(4_000_000 if key == 0 else 0) for key in range(1000)}
    names = {
        str(key): tensor(numbers(10**6), numbers(1), held=storage(text(str(key)), integer(10**6)))
        for key in range(1000)
    }
    yield "overlapping members", _same_place(zipped(mapping(names), megabytes), b"x/data/", 4_000_000)
    yield (
        "many members",
        zipped(value, {"x/data/0": bytes(16)} | {f"x/data/{key}": b"" for key in range(1, 5_000)}),
    )
    twice = zipped(value, {"x/data/0": bytes(16), "x/data/1": bytes(16)})
    yield "members of one name", twice.replace(b"x/data/1", b"x/data/0")
    yield "two pickles", zipped(value, {"x/data/0": bytes(16), "y/data.pkl": b"N."})
    yield "no pickle", zipped(value).replace(b"x/data.pkl", b"x/data.pkx")
    yield "a folder up", zipped(value).replace(b"x/data", b"..data")
    data = zipped(value)
    directory = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    for offset, width, title in [
        (8, 2, "flags"),
        (10, 2, "method"),
        (16, 4, "checksum"),
        (20, 4, "compressed size"),
        (24, 4, "size"),
        (28, 2, "length of the name"),
        (30, 2, "length of the extra field"),
        (42, 4, "offset"),
    ]:
        for filling in (b"\xff", b"\x01"):
            yield f"{title} of {filling!r}", _with(data, directory + offset, filling * width)
    for offset, width, title in [(8, 2, "entries"), (12, 4, "directory size"), (16, 4, "directory offset")]:
        for filling in (b"\xff", b"\x01"):
            yield f"{title} of {filling!r}", _with(data, end + offset, filling * width)
    yield "end without a start", b"PK\x03\x04" + data[end:]
    yield "a start alone", b"PK\x03\x04"


def _with(data: bytes, offset: int, replacement: bytes) -> bytes:
    return data[:offset] + replacement + data[offset + len(replacement) :]


def _same_place(data: bytes, prefix: bytes, size: int) -> bytes:
    """Every member with the prefix becomes the first one's bytes."""
    edited, at, first = bytearray(data), 0, None
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        if (
            data[at + 46 :].startswith(prefix)
            if len(data) < 1
            else data[at + 46 : at + 46 + len(prefix)] == prefix
        ):
            first = data[at + 42 : at + 46] if first is None else first
            edited[at + 42 : at + 46] = first
            edited[at + 16 : at + 20] = bytes(4)
            edited[at + 20 : at + 28] = size.to_bytes(4, "little") * 2
        at += 4
    return bytes(edited)


def legacy_bombs() -> Iterator[tuple[str, bytes]]:
    value, numbers4 = checkpoint(b"N"), (4).to_bytes(8, "little") + bytes(16)
    for title, keys in {
        "deep key": b"](" + DEEP + b"e",
        "wide key": b"](" + WIDE + b"e",
        "wide keys": WIDE,
        "a million keys": b"](" + text("0") + b"\x94" + b"h\x00" * 1_000_000 + b"e",
        "no list": b"N",
        "an unknown key": b"](" + text("7") + b"e",
        "a number as key": b"](K\x00e",
        "no keys": b"]",
    }.items():
        yield f"legacy, {title}", legacy(value, keys, numbers4 * 4)
    for title, data in {
        "no numbers": b"",
        "a negative length": b"\xff" * 8 + bytes(16),
        "a huge length": b"\xff" * 7 + b"\x7f" + bytes(16),
    }.items():
        yield f"legacy, {title}", legacy(value, data=data)
    huge = checkpoint(tensor(numbers(2**40), numbers(1), held=storage(numel=integer(2**62))))
    yield "legacy, storage of 2**62", legacy(huge, data=(2**62).to_bytes(8, "little"))
    magic = plain(integer(0x1950A86A20F9469CFC6C))
    for title, system in {"deep": DEEP, "wide": WIDE, "text": text("a")}.items():
        yield f"legacy, {title} as version", magic + plain(system)
        yield (
            f"legacy, {title} as system",
            magic + plain(integer(1001)) + plain(system) + plain(value) + plain(b"]"),
        )
    yield "legacy, cut after the magic number", magic


ONE_TENSOR = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def safetensors(entries: dict, data: bytes = bytes(16), **metadata: str) -> bytes:
    header = json.dumps(entries | ({"__metadata__": metadata} if metadata else {})).encode()
    return len(header).to_bytes(8, "little") + header + data


def safetensors_bombs() -> Iterator[tuple[str, bytes]]:
    for title, length in {"2**63": 2**63, "2**64 - 1": 2**64 - 1, "10**8": 10**8, "0": 0}.items():
        yield f"safetensors header of {title}", length.to_bytes(8, "little") + b"{}"
    for title, header in {
        "deep list": b'{"a":' + b"[" * 1_000_000,
        "deep dict": b'{"a":' * 1_000_000,
        "huge number": b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,16]}}',
        "no object": b"[]",
        "not UTF-8": b'{"\xff":1}',
    }.items():
        yield f"safetensors, {title}", len(header).to_bytes(8, "little") + header + bytes(16)
    for title, entry in {
        "overflow": {"dtype": "F32", "shape": [2**32, 2**32, 2**32], "data_offsets": [0, 16]},
        "zero times huge": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]},
        "huge times zero": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]},
        "many dimensions": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]},
        "reversed": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        "beyond the end": {"dtype": "F32", "shape": [4 * 10**9], "data_offsets": [0, 16 * 10**9]},
        "unknown dtype": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
        "four bits": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]},
        "exponents": {"dtype": "F8_E8M0", "shape": [16], "data_offsets": [0, 16]},
        "complex": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]},
    }.items():
        yield (
            f"safetensors, {title}",
            safetensors(
                {"a": entry}, bytes(entry["data_offsets"][1] if entry["data_offsets"][1] < 100 else 16)
            ),
        )
    two = {"a": ONE_TENSOR["a"], "b": ONE_TENSOR["a"]}
    yield "safetensors, overlapping", safetensors(two)
    for title, metadata in {
        "deep": "[" * 1_000_000,
        "huge number": '{"recipe":' + "9" * 1_000_000 + "}",
        "no JSON": "{",
        "a list": "[1]",
        "nothing": "null",
        "names of numbers": '{"classes":[1,2]}',
        "infinity": '{"recipe":{"name":"x","model":{"rpn":{"nms_iou":Infinity}}}}',
    }.items():
        yield f"safetensors, metadata {title}", safetensors(ONE_TENSOR, frcnn=metadata)


def recipe_bombs() -> Iterator[tuple[str, object]]:
    yield "of no fields", {}
    yield "as text", "x"
    for value in (
        [],
        "x",
        5,
        None,
        {"backbone": []},
        {"backbone": {"depth": "50"}},
        {"unknown": 1},
        {"": {}},
    ):
        yield f"model={value}", {"name": "x", "model": value}
    for field, values in {
        "num_classes": [10**12, 10**30, -1, 0, True, "80", 2.5, None, [80], 99_999],
        "fpn_channels": [2**40, 0, -16, 1e300, 99_999],
        "strides": [
            [4] * 1_000_000,
            [],
            [0, 0, 0, 0, 0],
            [-4, 8, 16, 32, 64],
            4,
            ["4"],
            [2**40] * 5,
            [4] * 64,
        ],
    }.items():
        for value in values:
            yield f"{field}={str(value)[:40]}", {"name": "x", "model": {field: value}}
    for part, fields in {
        "backbone": {
            "depth": [10**9, 0, "101"],
            "groups": [2**40, 0, 99_999],
            "base_width": [2**40, 0, -1],
            "frozen_stages": [10**6, -9],
            "style": [5, "other"],
            "norm_eval": ["yes", 1],
        },
        "rpn": {
            "scales": [[8.0] * 1_000_000, [], [float("inf")], [1e308]],
            "ratios": [[0], [-1], [], "0.5", [[0.5]]],
            "stds": [[1, 1, 1], [0, 0, 0, 0]],
            "samples": [10**12, -1],
            "nms_iou": [50, float("nan"), "0.7"],
        },
        "roi_head": {
            "fc_channels": [2**40, 0, -1],
            "pool_size": [2**20, 0],
            "box_loss": ["smooth_l1", None],
            "max_detections": [10**15],
            "soft_nms": ["foo"],
        },
    }.items():
        for field, values in fields.items():
            for value in values:
                yield f"{part}.{field}={str(value)[:40]}", {"name": "x", "model": {part: {field: value}}}
    yield "name=5", {"name": 5}
    yield "data.size=[1]", {"name": "x", "data": {"size": [1]}}
    yield "published=[]", {"name": "x", "published": []}
