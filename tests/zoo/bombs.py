"""Small files that make a careless reader crash, hang, or take gigabytes; `all_bombs` is the table.

Each is (ending of the file's name, how its bytes are made).
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator

from .pickles import (
    ARRAY,
    DEEP,
    WIDE,
    WIDE_BY_MEMO,
    call,
    group,
    integer,
    legacy,
    mapping,
    name,
    numbers,
    plain,
    storage,
    tensor,
    text,
    zipped,
)

Bomb = tuple[str, Callable[[], bytes]]
_DTYPE = call("numpy dtype", text("f4"))
_EMPTY_ARRAY = call("numpy.core.multiarray _reconstruct", name("numpy ndarray"), numbers(0), text("b"))
_FREE_MEMO = bytes([1, 0, 0, 0])
"""A place in the memo that the fragments which come as metadata leave free."""
_PRIME = 2**61 - 1
"""Python's hash of an integer is its remainder by this."""


def all_bombs() -> dict[str, Bomb]:
    bombs: dict[str, Bomb] = {}
    for title, fragment in _fragments():
        bombs[title] = (".pth", lambda fragment=fragment: zipped(_state(fragment)))
    for title, fragment in _nested("wide", WIDE):
        bombs[f"{title}, legacy"] = (".pth", lambda fragment=fragment: legacy(_state(fragment)))
    for title, fragment in _nested("wide", WIDE):
        bombs[f"{title}, plain"] = (".pkl", lambda fragment=fragment: plain(_state(fragment, ARRAY)))
    for title, data in [*_whole_files(), *_zips(), *_legacy_files()]:
        bombs[title] = (".pth", lambda data=data: data)
    for title, data in _safetensors():
        bombs[title] = (".safetensors", lambda data=data: data)
    for title, recipe in _recipes():
        bombs[f"recipe {title}"] = (
            ".safetensors",
            lambda recipe=recipe: safetensors(_ONE_TENSOR, frcnn=json.dumps({"recipe": recipe})),
        )
    return bombs


def _state(evil: bytes, weight: bytes | None = None) -> bytes:
    """A checkpoint with a weight and an evil entry."""
    entries = {"weight": tensor() if weight is None else weight, "evil": evil}
    return mapping({"meta": b"}", "state_dict": mapping(entries)})


def _meta(evil: bytes) -> bytes:
    """A checkpoint with a weight and evil metadata: the recipe, the class names, the configuration's text."""
    start = evil + b"r" + _FREE_MEMO + b"0"
    names = {key: b"j" + _FREE_MEMO for key in ("recipe", "CLASSES", "config", "dataset_meta")}
    return start + mapping({"meta": mapping(names), "state_dict": mapping({"weight": tensor()})})


def _fragments() -> Iterator[tuple[str, bytes]]:
    hashed = ("key", "element", "storage", "module", "code", "value")
    yield from ((title, nest) for title, nest in _nested("deep", DEEP) if title.endswith(hashed))
    yield from _nested("wide", WIDE)
    yield from ((title, nest) for title, nest in _nested("shared", WIDE_BY_MEMO) if title.endswith(hashed))
    yield from _repeated()
    yield from _huge_numbers()
    yield from _tensors()
    yield "deep list", b"]" * 200_000 + b"a" * 199_999
    yield "deep dict of dicts", (b"}N" * 200_000) + b"N" + b"s" * 200_000
    yield "deep objects", name("a b") * 100_000 + b"N" + (b"\x85R" * 100_000)
    yield "deep tuple as state of the weights", mapping({"state_dict": DEEP})
    yield "list in itself", b"]\x94h\x00a"
    yield "dict in itself", b"}\x94Nh\x00s"


def _nested(title: str, nest: bytes) -> Iterator[tuple[str, bytes]]:
    """A nested tuple wherever a reader might hash, compare or show it."""
    order = call("numpy dtype", text("f4")) + group(integer(3), nest, b"N", b"N") + b"b"
    for where, fragment in {
        "key": b"}" + nest + b"Ns",
        "key of several": b"}(" + nest + b"Nu",
        "key of a DICT": b"(" + nest + b"Nd",
        "element": b"\x8f(" + nest + b"\x90",
        "frozen element": b"(" + nest + b"\x91",
        "element of set()": call("builtins set", b"](" + nest + b"e"),
        "key of an OrderedDict": call("collections OrderedDict", b"](" + group(nest, b"N") + b"e"),
        "state of an OrderedDict": call("collections OrderedDict") + b"}" + nest + b"Nsb",
        "storage's key": tensor(held=storage(key=nest)),
        "storage's length": tensor(held=storage(numel=nest)),
        "storage's type": group(text("storage"), nest, text("0"), text("cpu"), integer(4)) + b"Q",
        "reference": nest + b"Q",
        "module": nest + text("a") + b"\x93)R",
        "attribute": text("a") + nest + b"\x93)R",
        "dtype's code": call("numpy dtype", nest),
        "dtype's order": _array(dtype=order),
        "array's shape": _array(shape=nest),
        "array's dtype": _array(dtype=nest),
        "array's bytes": _array(data=nest),
        "buffer": call("numpy.core.numeric _frombuffer", nest, _DTYPE, numbers(1)),
        "scalar": call("numpy.core.multiarray scalar", _DTYPE, nest),
        "shape": tensor(shape=nest),
        "stride": tensor(stride=nest),
        "offset": tensor(offset=nest),
        "encoding": call("_codecs encode", text("a"), nest),
        "device": call("torch device", nest),
        "parameter": call("torch._utils _rebuild_parameter", nest, b"\x89", b"}"),
        "value": nest,
        "arguments": name("torch Size") + nest + b"R",
        "state of an object": name("a b") + b")\x81" + nest + b"b",
    }.items():
        yield f"{title} tuple as {where}", fragment


def _array(shape: bytes = numbers(1), dtype: bytes = _DTYPE, data: bytes = b"C\x04abcd") -> bytes:
    return _EMPTY_ARRAY + group(integer(1), shape, dtype, b"\x89", data) + b"b"


def _repeated() -> Iterator[tuple[str, bytes]]:
    """One large object that is copied again and again, or very many small ones."""
    megabyte, items = text("x" * 1_000_000) + b"\x94", b"](" + b"K\x01" * 100_000 + b"e\x94"
    pairs = b"](" + (text("a") + b"N\x86") * 50_000 + b"e\x94"
    for title, start, each in [
        ("names", megabyte, b"h\x00h\x00\x93"),
        ("encoded text", megabyte, name("_codecs encode") + b"h\x00" + text("latin1") + b"\x86R"),
        ("bytes", megabyte, name("builtins bytes") + b"h\x00" + text("latin1") + b"\x86R"),
        ("lists", items, name("builtins list") + b"h\x00\x85R"),
        ("tuples", items, name("torch Size") + b"h\x00\x85R"),
        ("sets", items, name("builtins set") + b"h\x00\x85R"),
        ("dicts", pairs, name("collections OrderedDict") + b"h\x00\x85R"),
        (
            "arguments",
            items + b"0" + items[:-1] + b"0(" + b"K\x01" * 100_000 + b"t\x94",
            name("a b") + b"h\x02R",
        ),
        ("array data", megabyte, _array(shape=numbers(250_000), data=b"h\x00")),
        ("shapes", items, name("torch._utils _rebuild_tensor_v2") + b"(" + storage() + b"K\x00h\x00h\x00tR"),
    ]:
        yield f"copied {title}", start + b"0(" + each * 20_000 + b"l"
    for title, each in {
        "references": b"2",
        "marks": b"(",
        "sets": b"\x8f",
        "dicts": b"}",
        "objects": name("a b") + b")R",
    }.items():
        yield f"millions of {title}", b"(N" + each * (4_000_000 // len(each)) + b"l"


def _huge_numbers() -> Iterator[tuple[str, bytes]]:
    huge, digits = integer(1 << 8_000_000), b"9" * 1_000_000 + b"\n"
    yield "huge integer", huge
    yield "huge integer as key", b"}" + huge + b"Ns"
    yield "huge integer as shape", tensor(shape=b"(" + huge + b"t", stride=numbers(1))
    yield "huge integer as offset", tensor(offset=huge)
    yield "huge integer as storage's length", tensor(held=storage(numel=huge))
    yield "huge integer as storage's key", tensor(held=storage(key=huge))
    yield "huge integer as device", call("torch device", huge)
    for code in (b"I", b"L", b"F", b"g", b"p"):
        yield f"a million digits after {code.decode()}", b"N" + code + digits
    yield "memo 2**31", b"Nr\xff\xff\xff\x7f"
    yield "memo of 4000 digits", b"Np" + b"9" * 4000 + b"\n"
    for title, keys in {
        "hash 0": (i * _PRIME for i in range(1, 100_000)),
        "low bits 0": (i << 40 for i in range(100_000)),
        "small": range(100_000),
    }.items():
        yield f"integer keys of {title}", b"}(" + b"".join(integer(key) + b"N" for key in keys) + b"u"
    floats = (2.0**power * (1 + odd / 64) for power in range(-1000, 1000) for odd in range(50))
    yield "float keys", b"}(" + b"".join(b"G" + struct.pack(">d", key) + b"N" for key in floats) + b"u"
    collisions = b"".join(b"Np" + str(i * _PRIME).encode() + b"\n0" for i in range(1, 60_000))
    yield "memos of hash 0", b"(" + collisions + b"t"
    for title, value in {"bytes": "builtins bytes", "bytearray": "builtins bytearray"}.items():
        yield f"{title} of 10**10", call(value, integer(10**10))
    yield "buffer of 10**10", call("numpy.core.numeric _frombuffer", integer(10**10), _DTYPE, numbers(1))
    yield "buffer of a list", call("numpy.core.numeric _frombuffer", b"](K\x01e", _DTYPE, numbers(1))
    for code in (
        "f99999999",
        "S1000000000",
        "U999999999",
        "V1000000000",
        "f²",
        ">f4",
        "f4,f4",
        "O8",
        "",
        "f",
    ):
        dtype = call("numpy dtype", text(code))
        yield f"array of {code}", _array(dtype=dtype)
        yield f"number of {code}", call("numpy.core.multiarray scalar", dtype, b"C\x04abcd")


def _tensors() -> Iterator[tuple[str, bytes]]:
    for shape, stride in [
        ((2**31,) * 16, (0,) * 16),
        ((2**61,), (0,)),
        ((2**62, 4), (0, 0)),
        ((2**30,), (0,)),
        ((10**6, 10**6), (0, 0)),
        ((1,) * 17, (1,) * 17),
        ((1,) * 100_000, (1,) * 100_000),
        ((0, 2**61), (1, 1)),
        ((2**61, 2**61, 0), (1, 1, 1)),
        ((2**62, 2**62, 2**62, 0), (2**61, 2**61, 2**61, 2**61)),
        ((2, 2), (2**61, 2**61)),
        ((2**64,), (1,)),
        ((-(2**62), -4), (1, 1)),
        ((2, 2), (-(2**62), 1)),
    ]:
        yield f"tensor of {str((shape, stride))[:60]}", tensor(numbers(*shape), numbers(*stride))
        yield f"array of {str(shape)[:60]}", _array(shape=numbers(*shape))
    yield "offset 2**61", tensor(offset=integer(2**61))
    yield "offset -1", tensor(offset=integer(-1))
    for numel in (2**62, 2**64, -1, 5, 3, 0):
        yield f"storage of {numel}", tensor(held=storage(numel=integer(numel)))
    yield (
        "storage of another type",
        mapping({"a": tensor(), "b": tensor(held=storage(kind="torch ByteStorage"))}),
    )
    sparse = group(numbers(2**40, 2**40), tensor(), tensor())
    yield "sparse", call("torch._utils _rebuild_sparse_tensor", name("torch sparse_coo"), sparse)
    yield (
        "quantised",
        call("torch._utils _rebuild_qtensor", storage(), integer(0), numbers(4), numbers(1), b"N"),
    )
    yield "meta", call("torch._utils _rebuild_meta_tensor_no_storage", name("torch float32"), numbers(2**40))
    yield "subclass of a subclass", _nest_from_type(1000)


def _nest_from_type(times: int) -> bytes:
    start = (
        name("torch._tensor _rebuild_from_type_v2") + b"(" + name("torch._utils _rebuild_parameter") + b"N("
    )
    return start * times + tensor() + b"tNtR" * times


def _whole_files() -> Iterator[tuple[str, bytes]]:
    for title, value in {
        "deep": DEEP,
        "wide": WIDE,
        "self": b"]\x94h\x00a",
        "dicts": b"}\x94Nh\x00s",
    }.items():
        yield f"{title} as the whole value", plain(value)
        yield f"{title} as metadata", zipped(_meta(value))
        yield f"{title} as the whole value, zip", zipped(value)
    expanded = tensor(numbers(2**26), numbers(0))
    names = {
        f"backbone.body.layer{i}.bn1.{leaf}": expanded
        for i in range(200)
        for leaf in ("running_var", "weight")
    }
    yield "expanded tensors for torchvision's conversion", zipped(mapping(names))
    classes = tensor(numbers(2**26), numbers(0))
    leaf = "roi_heads.box_predictor.cls_score"
    yield (
        "expanded classes",
        zipped(mapping({f"{leaf}.weight": classes, f"{leaf}.bias": classes, "backbone.body.": classes})),
    )
    names = {"pixel_mean": expanded, "proposal_generator.anchor_generator.cell_anchors.x": expanded}
    yield "expanded anchors", zipped(mapping(names | {"proposal_generator.a": tensor()}))
    anchors = {
        f"proposal_generator.anchor_generator.cell_anchors.{level}": tensor()
        for level in ("x", "99", "9" * 5000)
    }
    for key, value in anchors.items():
        yield f"anchors of level {key[-20:]}", zipped(mapping({key: value}))
    for key in ("roi_heads.box_predictor.cls_score.bias", "roi_head.bbox_head.fc_cls.bias"):
        flat = tensor(b")", b")")
        yield (
            f"scalar {key}",
            zipped(mapping({key: flat, key.replace("bias", "weight"): flat, "backbone.body.": flat})),
        )
    names = b"](" + text("class") + b"\x94" + b"h\x00" * 1_000_000 + b"e"
    everything = {"meta": mapping({"CLASSES": names, "recipe": mapping({"name": text("x")})})}
    yield "a million class names", zipped(mapping(everything | {"state_dict": mapping({"a": tensor()})}))
    yield "long names", zipped(mapping({"\x1b[2J" + "a" * 1_000_000: tensor(), "\udc80": tensor()}))
    yield "prefixes", zipped(mapping({"module." * 200_000 + "a": tensor()}))
    shared = b"C" + b"\xff" + bytes(255) + b"\x94"
    arrays = {str(i): _array(numbers(250_000), data=b"h\x00") for i in range(20_000)}
    yield "arrays of one buffer", plain(mapping({"start": text("a" * 1_000_000) + b"\x94"} | arrays))
    yield "short buffer", plain(mapping({"start": shared}))
    views = {str(i): tensor(numbers(2**26), numbers(0)) for i in range(2000)}
    yield "expanded views", zipped(mapping(views))
    for title, data in {
        "frame of 2**63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
        "frames in frames": b"\x80\x04" + (b"\x95" + b"\x00" * 8) * 100_000 + b"}.",
        "text of 2**63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
        "bytes of 2**40": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
        "bytearray of 2**40": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
        "integer of -1 bytes": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "string of -1 bytes": b"\x80\x02T\xff\xff\xff\xff.",
        "line without end": b"(V" + b"a" * 3_000_000,
        "name without end": b"c" + b"a" * 3_000_000,
        "out of band buffer": b"\x80\x05\x97.",
        "two hundred protocols": b"\x80\x02" * 200 + b"}.",
    }.items():
        yield title, data


def _zips() -> Iterator[tuple[str, bytes]]:
    value = _state(b"N")
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


def _legacy_files() -> Iterator[tuple[str, bytes]]:
    value, numbers4 = _state(b"N"), (4).to_bytes(8, "little") + bytes(16)
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
    huge = _state(tensor(numbers(2**40), numbers(1), held=storage(numel=integer(2**62))))
    yield "legacy, storage of 2**62", legacy(huge, data=(2**62).to_bytes(8, "little"))
    magic = plain(integer(0x1950A86A20F9469CFC6C))
    for title, system in {"deep": DEEP, "wide": WIDE, "text": text("a")}.items():
        yield f"legacy, {title} as version", magic + plain(system)
        yield (
            f"legacy, {title} as system",
            magic + plain(integer(1001)) + plain(system) + plain(value) + plain(b"]"),
        )
    yield "legacy, cut after the magic number", magic


_ONE_TENSOR = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def safetensors(entries: dict, data: bytes = bytes(16), **metadata: str) -> bytes:
    header = json.dumps(entries | ({"__metadata__": metadata} if metadata else {})).encode()
    return len(header).to_bytes(8, "little") + header + data


def _safetensors() -> Iterator[tuple[str, bytes]]:
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
    two = {"a": _ONE_TENSOR["a"], "b": _ONE_TENSOR["a"]}
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
        yield f"safetensors, metadata {title}", safetensors(_ONE_TENSOR, frcnn=metadata)


def _recipes() -> Iterator[tuple[str, object]]:
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
