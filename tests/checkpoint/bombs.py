"""Small files that make a careless reader crash, hang, or take gigabytes; `all_bombs` is the table.

Each is (ending of the file's name, how its bytes are made).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

from container_bombs import ONE_TENSOR, legacy_bombs, recipe_bombs, safetensors, safetensors_bombs, zip_bombs
from pickles import (
    ARRAY,
    DEEP,
    WIDE,
    WIDE_BY_MEMO,
    call,
    checkpoint,
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
        bombs[title] = (".pth", lambda fragment=fragment: zipped(checkpoint(fragment)))
    for title, fragment in _nested("wide", WIDE):
        bombs[f"{title}, legacy"] = (".pth", lambda fragment=fragment: legacy(checkpoint(fragment)))
    for title, fragment in _nested("wide", WIDE):
        bombs[f"{title}, plain"] = (".pkl", lambda fragment=fragment: plain(checkpoint(fragment, ARRAY)))
    for title, data in [*_whole_files(), *_training_bombs(), *zip_bombs(), *legacy_bombs()]:
        bombs[title] = (".pth", lambda data=data: data)
    for title, data in safetensors_bombs():
        bombs[title] = (".safetensors", lambda data=data: data)
    for title, recipe in recipe_bombs():
        bombs[f"recipe {title}"] = (
            ".safetensors",
            lambda recipe=recipe: safetensors(ONE_TENSOR, frcnn=json.dumps({"recipe": recipe})),
        )
    return bombs


def _training_bombs() -> Iterator[tuple[str, bytes]]:
    """What a reader that hashes the content of a training state, or shows it, walks through."""
    values = {
        "deep tuple": DEEP,
        "wide tuple": WIDE,
        "wide tuple by memo": WIDE_BY_MEMO,
        "list in itself": b"]\x94h\x00a",
        "huge integer": integer(1 << 8_000_000),
        "huge integers": b"(" + integer(1 << 14_000) + b"q\x00" + b"h\x00" * 500_000 + b"t",
        "much text": b"(" + text("x" * 1_000_000) + b"q\x00" + b"h\x00" * 500_000 + b"t",
        "much text as keys": b"(" + text("x" * 1_000_000) + b"q\x00(" + b"}h\x00Ns" * 100_000 + b"tt",
        "one tensor": b"(" + tensor(numbers(2**24), numbers(0)) + b"q\x00" + b"h\x00" * 500_000 + b"t",
        "expanded tensors": b"(" + tensor(numbers(2**26), numbers(0)) * 1000 + b"t",
        "object": name("os system") + group(text("true")) + b"R",
    }
    for title, value in values.items():
        state = mapping({"format": integer(2), "evil": value})
        yield f"training state of {title}", zipped(mapping({"training": state, "weight": tensor()}))


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
        "quantized",
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
