"""Nothing in a file is executed: each payload would leave a file behind, and none does."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import subprocess
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import frcnn
from frcnn.checkpoint.load import CheckpointError, read_checkpoint
from frcnn.checkpoint.records import ArrayRecord, Global, Inert, TensorRecord, UnpickleError
from frcnn.checkpoint.safe_pickle import unpickle


def read(data: bytes):
    return unpickle(io.BytesIO(data), len(data))


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments, state=None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


class SetState:
    """Pickles with a state, which Python would hand to ``__setstate__``."""

    def __init__(self, state=None) -> None:
        self.state = state

    def __getstate__(self):
        return {"state": self.state}

    def __setstate__(self, state) -> None:
        builtins.exec(state["state"])


@pytest.fixture
def marker(tmp_path):
    """A path that every payload tries to create."""
    return tmp_path / "executed"


def payloads(marker) -> dict[str, object]:
    touch = f"touch '{marker}'"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Call(os.system, touch),
        "nested": {"a": [(Call(os.system, touch),)]},
        "argument": Call(list, [Call(os.system, touch)]),
        "exec": Call(exec, code),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "popen": Call(subprocess.check_call, ["touch", str(marker)]),
        "getattr": Call(getattr(builtins, "__import__"), "os", state={"x": Call(os.system, touch)}),  # noqa: B009
        "setstate": SetState(code),
        "ordered dict": OrderedDict([("a", Call(os.system, touch))]),
        "default factory": Call(defaultdict, Call(os.system, touch)),
        "open": Call(open, str(marker), "w"),
        "hooks": Call(torch._utils._rebuild_parameter, Call(os.system, touch), False, OrderedDict()),
        "array subtype": Call(np._core.multiarray._reconstruct, Call(os.system, touch), (0,), b"b"),
        "array of objects": np.array([Call(os.system, touch)], dtype=object),
    }


NAMES = list(payloads("x"))


@pytest.mark.parametrize("name", NAMES)
def test_the_payload_is_live_and_we_do_not_run_it(name, marker):
    payload = payloads(marker)[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(payload, protocol)
        result = read(data)
        assert not marker.exists()
        assert result.left_out
    with open(os.devnull, "w"):
        try:
            pickle.loads(data)
        except Exception:  # some payloads break Python's reader after they have run
            pass
    assert marker.exists(), "a payload that Python does not run proves nothing"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_weights_load_beside_a_payload_in_the_optimizer_state(name, zipped, marker, tmp_path):
    payload = payloads(marker)[name]
    content = {
        "meta": {"CLASSES": ("cat", "dog"), "hook": payload},
        "state_dict": OrderedDict(a=torch.arange(6.0).view(2, 3)),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3), "step": payload}}},
        "message_hub": payload,
    }
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert not marker.exists()
    assert checkpoint.class_names == ("cat", "dog")
    assert torch.equal(checkpoint.tensors["a"], torch.arange(6.0).view(2, 3))
    assert any("left out" in note for note in checkpoint.notes)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_in_place_of_a_weight_is_a_missing_weight(name, marker, tmp_path, small_recipe):
    model = frcnn.build(small_recipe)
    state = dict(model.state_dict())
    state["backbone.conv1.weight"] = payloads(marker)[name]
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight|array of dtype"):
        frcnn.load_checkpoint(model, path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch %s'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch %s'\no.",  # OBJ
        b"cposix\nsystem\n(S'touch %s'\ntR.",
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\nS'__call__'\ntR(S'os'\ntR(S'touch %s'\ntR.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94(S'touch %s'\ntR.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x08builtins\x8c\x0fexec.__call__.a\x93(S'touch %s'\ntR.",
        b"c__main__\nA\n)\x81}S'__setstate__'\ncos\nsystem\nsbS'touch %s'\nb.",  # __setstate__ set
        b"cbuiltins\nlist\n(N}S'__init__'\ncos\nsystem\nstb(S'touch %s'\ntR.",  # state set on a class
        b"ccollections\nOrderedDict\n}S'__reduce__'\ncos\nsystem\nsbS'touch %s'\n0.",
        b"PS'touch %s'\n.",  # PERSID
        b"(cos\nsystem\nS'touch %s'\ntQ.",  # BINPERSID of a call
        b"\x80\x02cos\nsystem\n(S'touch %s'\nt\x81.",  # NEWOBJ
        b"\x80\x04cos\nsystem\n(S'touch %s'\nt}\x92.",  # NEWOBJ_EX
    ],
)
def test_hand_written_pickles_run_nothing(template, marker):
    data = template % str(marker).encode()
    try:
        read(data)
    except UnpickleError:
        pass
    assert not marker.exists()


def test_extension_codes_are_not_resolved(marker):
    copyreg.add_extension("os", "system", 241)
    try:
        data = b"\x80\x02\x82\xf1(S'touch " + str(marker).encode() + b"'\ntR."
        result = read(data)
        assert isinstance(result.value, Inert)
        assert not marker.exists()
        pickle.loads(data)
        assert marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 241)


def test_nothing_is_imported(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", lambda *_, **__: pytest.fail("an import"))
    result = read(b"cantigravity\nfly\n)R.")
    monkeypatch.undo()
    assert result.value.path == "antigravity.fly"
    assert result.left_out == ("antigravity.fly",)


def test_a_state_on_a_known_name_changes_nothing_of_ours():
    before = dict(Global.__dict__), dict(OrderedDict.__dict__)
    read(b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\nNstb.")
    read(b"ccollections\nOrderedDict\n)R(N}S'keys'\nNstb.")
    assert (dict(Global.__dict__), dict(OrderedDict.__dict__)) == before


class History:
    """Like mmengine's HistoryBuffer: an object with arrays, of a class that readers may lack."""

    def __init__(self) -> None:
        self.values = np.arange(5.0)
        self.names = {"mean": [1, 2]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_as_python_reads_them(protocol):
    value = {
        "none": None,
        "flags": [True, False],
        "numbers": [0, 1, 255, 256, -1, 65536, 2**31, -(2**40), 2**100, 0.0, -1.5, 1e300],
        "text": ["", "a", "ä€😀", "x" * 300, "line\nbreak"],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "bytes": [b"", b"\x00\xff" * 200, bytearray(b"\x80a")],
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        b"bytes": {1: "one", -(2**59): "many", None: None, 0.5: "half", "deep": [[[]]]},
    }
    value["again"] = value["text"]
    result = read(pickle.dumps(value, protocol))
    assert result.value == value
    assert result.value["again"] is result.value["text"]
    assert result.left_out == ()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_sets_are_lists_and_entries_with_other_keys_are_left_out(protocol):
    value = {"sets": [{1}, frozenset({(2, "b")})], ("key", 1): 3, 2**60: 4, frozenset(): 5, "kept": 6}
    result = read(pickle.dumps(value, protocol))
    assert result.value == {"sets": [[1], [(2, "b")]], "kept": 6}
    assert result.left_out == tuple(
        f"entries with such keys as a {kind}" for kind in ("int", "list", "tuple")
    )


def test_cycles_are_read():
    value: list = [1]
    value.append(value)
    result = read(pickle.dumps(value))
    assert result.value[0] == 1 and result.value[1] is result.value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.arange(4, dtype=">f8"),
        np.zeros((0, 5), np.uint8),
        np.array(True),
    ],
)
def test_arrays_come_back(array, protocol):
    record = read(pickle.dumps(array, protocol)).value
    assert isinstance(record, ArrayRecord)
    assert np.array_equal(record.numpy(), array)
    assert record.numpy().dtype == array.dtype.newbyteorder("=")


def test_numpy_numbers_become_pythons():
    result = read(pickle.dumps([np.float64(1.5), np.int32(-3), np.bool_(True)]))
    assert result.value == [1.5, -3, True]


def test_objects_of_other_classes_are_inert_and_named():
    result = read(pickle.dumps({"history": History(), "epoch": 3}))
    assert isinstance(result.value["history"], Inert)
    assert result.value["epoch"] == 3
    assert [name.rsplit(".", 1)[-1] for name in result.left_out] == ["History"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"]q\x00.garbage"[:3],
        b"K",
        b"h\x05.",  # a memo that was never set
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2**63 - 1
        b"X\xff\xff\xff\x7fabc.",  # a string of 2 GB
        b"\x8b\xff\xff\xff\x7f.",  # an integer of 2 GB
        b"}]N s.",
        b"}(K\x01u.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"c_codecs\nencode\n(Vabc\nVunicode_escape\ntR.",
        b"\x97.",
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(UnpickleError):
        read(data)


def test_announced_lengths_cost_no_memory():
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(UnpickleError, match="ends in the middle"):
        read(b"\x8e" + (2**40).to_bytes(8, "little") + b"abc")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


SAMPLE = pickle.dumps(
    {
        "a": np.arange(3.0),
        "b": OrderedDict(x=(1, 2.5, "text")),
        "c": Call(os.getcwd),
        "d": [{1}, b"bytes", None],
    },
    protocol=4,
)


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=4),
    end=st.integers(0, len(SAMPLE)),
)
def test_any_damage_is_a_value_or_one_kind_of_error(edits, end):
    data = bytearray(SAMPLE[:end] if end % 2 else SAMPLE)
    for position, byte in edits:
        if position < len(data):
            data[position] = byte
    try:
        read(bytes(data))
    except UnpickleError:
        pass


def test_tensors_are_records_until_they_are_read(tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.ones(2, 3), buffer)
    import zipfile

    with zipfile.ZipFile(buffer) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        result = read(archive.read(name))
    assert isinstance(result.value, TensorRecord)
    assert (result.value.shape, result.value.stride, result.value.storage.dtype) == (
        (2, 3),
        (3, 1),
        "float32",
    )
    assert list(result.storages) == [result.value.storage.key]
