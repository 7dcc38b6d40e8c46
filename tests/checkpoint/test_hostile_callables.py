"""Pickles that name callables in every way there is: none is called, imported or even looked up."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys

import pytest
from children import failures
from pickles import ARRAY, call, group, legacy, mapping, name, plain, tensor, text, zipped

from frcnn.checkpoint.load import read_checkpoint

CALLABLES = [
    f"{module} {attribute}"
    for module, attributes in {
        "os": "system popen execv execvp spawnlp posix_spawn remove unlink rename rmdir mkdir open kill "
        "_exit putenv",
        "posix": "system execv fork abort",
        "nt": "system",
        "subprocess": "Popen call check_call check_output run getoutput",
        "builtins": "eval exec compile open __import__ getattr setattr delattr globals input map filter type "
        "print breakpoint vars dir super memoryview property",
        "__builtin__": "eval execfile apply file reduce",
        "sys": "exit setrecursionlimit settrace addaudithook modules",
        "importlib": "import_module reload",
        "runpy": "run_path run_module _run_code",
        "code": "interact InteractiveInterpreter",
        "pickle": "loads load Unpickler",
        "marshal": "loads",
        "types": "FunctionType CodeType",
        "ctypes": "CDLL cast string_at memmove",
        "socket": "socket create_connection",
        "urllib.request": "urlopen urlretrieve",
        "shutil": "rmtree move copyfile",
        "pathlib": "Path PosixPath",
        "tempfile": "mkstemp",
        "threading": "Thread",
        "multiprocessing.util": "spawnv_passfds",
        "operator": "methodcaller attrgetter itemgetter",
        "functools": "partial reduce",
        "torch": "load compile jit.load hub.load",
        "torch._utils": "_import_dotted_name",
        "torch.storage": "_load_from_bytes",
        "numpy": "load fromfile memmap",
        "webbrowser": "open",
        "timeit": "timeit",
        "pdb": "run",
        "cProfile": "run",
    }.items()
    for attribute in attributes.split()
]


def ways(path: str, argument: bytes, extension: int) -> dict[str, bytes]:
    """What makes Python's own reader call ``path`` (in the last but three, a class) with ``argument``."""
    module, attribute = path.split(" ")
    stack_global = text(module) + text(attribute) + b"\x93"
    imported = call("importlib import_module", text(module))
    return {
        "GLOBAL REDUCE": call(path, argument),
        "STACK_GLOBAL REDUCE": stack_global + group(argument) + b"R",
        "INST": b"(" + argument + f"i{module}\n{attribute}\n".encode(),
        "OBJ": b"(" + name(path) + argument + b"o",
        "EXT": b"\x83" + extension.to_bytes(2, "little") + group(argument) + b"R",
        "BINPERSID": call(path, argument) + b"Q",
        "by import": call("builtins getattr", imported, text(attribute)) + group(argument) + b"R",
        "BUILD": name("types SimpleNamespace")
        + b")\x81}"
        + text("__setstate__")
        + name(path)
        + b"sb"
        + argument
        + b"b",
        "NEWOBJ": name(path) + group(argument) + b"\x81",
        "NEWOBJ_EX": name(path) + group(argument) + b"}\x92",
    }


CONTAINERS = {
    "zip": lambda evil: zipped(mapping({"weight": tensor(), "evil": evil})),
    "legacy": lambda evil: legacy(mapping({"weight": tensor(), "evil": evil})),
    "plain": lambda evil: plain(mapping({"weight": ARRAY, "evil": evil})),
}


class Canary:
    """Counts its own making."""

    made = 0

    def __new__(cls, *arguments, **keywords):
        Canary.made += 1
        return super().__new__(cls)


class Reader(pickle.Unpickler):
    """Python's own."""

    def persistent_load(self, reference):
        return reference


@pytest.fixture
def extensions():
    """Codes 1000 and up for every callable, as a program that uses pickle's extension registry has."""
    names = [*CALLABLES, f"{Canary.__module__} Canary"]
    for code, path in enumerate(names, 1000):
        copyreg.add_extension(*path.split(" "), code)
    yield
    for code, path in enumerate(names, 1000):
        copyreg.remove_extension(*path.split(" "), code)


@pytest.mark.parametrize("way", ways("a b", b"N", 0))
def test_the_ways_are_live_in_pythons_own_reader(way, extensions):
    data = plain(ways(f"{Canary.__module__} Canary", text("x"), 1000 + len(CALLABLES))[way])
    before = Canary.made
    Reader(io.BytesIO(data)).load()
    assert Canary.made == before + 1


def test_no_callable_is_called(tmp_path, extensions, record_property):
    canary = tmp_path / "executed"
    argument = text(f"__import__('os').system('touch {canary}') # '; touch {canary}")
    path = tmp_path / "file.pth"
    cases = {
        f"{called}, {way}, {container}": data
        for index, called in enumerate(CALLABLES)
        for way, fragment in ways(called, argument, 1000 + index).items()
        for container, data in ((kind, CONTAINERS[kind](fragment)) for kind in CONTAINERS)
    }
    events: list[str] = []

    def watch(event, arguments):
        ours = event == "builtins.id" or (event == "open" and arguments[0] == str(path))
        if not ours:
            events.append(event)

    def read_all():
        for container in CONTAINERS:  # whatever is imported late
            path.write_bytes(CONTAINERS[container](b"N"))
            read_checkpoint(path)
        sys.addaudithook(watch)  # of this child, with which it ends
        for case, data in cases.items():
            path.write_bytes(data)
            events.clear()
            checkpoint = read_checkpoint(path)
            assert not events, f"{case}: {events}"
            assert list(checkpoint.tensors) == ["weight"], case
            assert any("left out" in note for note in checkpoint.notes), case
        events.clear()
        pickle.loads(plain(call("os system", text("true"))))
        assert {"pickle.find_class", "os.system"} <= set(events), "the watch sees what it should"

    assert failures({"all": read_all}, seconds=120) == {}
    assert not canary.exists()
    record_property("tried", f"{len(cases):,} pickles that name callables, none executed")
    assert len(cases) >= 2_910
