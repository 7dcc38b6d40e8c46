"""Reads pickles as data: nothing in a file is ever imported or called.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program names.
This one is written out here, so that what it can do is plain to see: it builds containers, numbers, strings,
and records of tensors and arrays. Every other class or function named by a file becomes an `Inert` object
that ignores whatever is done to it.

Time and memory are bounded as well. Only text and single numbers are hashed, since a nested tuple as key can
take exponential time or the C stack; an entry with another key is left out, and a set is read as a list.
Names are text of bounded length; steps, copies and keys that are numbers are counted.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any, BinaryIO, cast

from frcnn.checkpoint.records import (
    BUILDERS,
    MOST_ARGUMENTS,
    STORAGE_DTYPES,
    ArrayDtype,
    ArrayRecord,
    CutShort,
    Global,
    Inert,
    Storage,
    UnpickleError,
)


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds: ``value`` is made of dict, list, tuple, numbers, strings, bytes and the records of
    `frcnn.checkpoint.records`; ``left_out`` names the classes that became `Inert`, sorted; ``storages`` are
    all tensor storages referred to, by key."""

    value: Any
    left_out: tuple[str, ...]
    storages: dict[str, Storage]


def unpickle(file: BinaryIO, limit: int) -> Unpickled:
    """Read one pickle from ``file``, which is left just after it.

    Args:
        limit: how many bytes the file has; announced lengths are checked against it.

    Raises:
        UnpickleError: truncated or malformed, or far from what a checkpoint holds.
    """
    machine = _Machine(file, limit)
    try:
        return Unpickled(machine.run(), tuple(sorted(machine.unknown)), machine.storages)
    except UnpickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        if not file.read(1):
            raise CutShort("it ends in the middle of a pickle") from error
        raise UnpickleError(f"a pickle in it makes no sense: {error}") from error


class _Bounded:
    """Refuses a length that a file merely claims, before any memory is set aside for it."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file = file
        self.limit = limit

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.limit or len(data := self.file.read(size)) < size:
            raise CutShort("it ends in the middle of an object")
        return data

    def readline(self) -> bytes:
        return self.file.readline(1 << 20)


MOST_STEPS = 1_000_000
_MOST_NUMBERS_AS_KEYS = (
    50_000  # numbers with colliding hashes, which are easily made, cost their number squared
)
_LONGEST_NAME = 500
_COPIED = frozenset({str, bytes, bytearray, list, tuple})
_PUSH = frozenset(
    # numbers and strings, which pickletools decodes
    "INT BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)


class _Machine:
    """The stack machine; one method per family of opcodes, `_STEPS` tells which.

    The methods of opcodes that a checkpoint has thousands of read their arguments themselves. Where the file
    ends within those, the next step is missing, so it is refused all the same.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.read = file.read
        self.bounded = cast(IO[bytes], _Bounded(file, limit))  # as much of a file as pickletools uses
        self.copies_left = 4 * limit + 65536  # an object can be named again and again, but not copied so
        self.number_keys_left = _MOST_NUMBERS_AS_KEYS
        self.stack: list[Any] = []  # what was pushed since the last mark
        self.below: list[list[Any]] = []  # the same for each mark before
        self.memo: dict[int, Any] = {}
        self.unknown: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        opcodes = iter(partial(self.read, 1), b".")
        for opcode in islice(opcodes, MOST_STEPS):
            _STEPS[opcode](self)
        if next(opcodes, None) is not None:
            raise UnpickleError(f"more than {MOST_STEPS} pickled steps; a checkpoint has fewer")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    # numbers and text
    def do_none(self) -> None:
        self.stack.append(None)

    def do_newtrue(self) -> None:
        self.stack.append(True)

    def do_newfalse(self) -> None:
        self.stack.append(False)

    def do_binint1(self) -> None:
        self.stack.append(self.read(1)[0])

    def do_binint(self) -> None:
        self.stack.append(int.from_bytes(self.read(4), "little", signed=True))

    def do_binunicode(self) -> None:
        data = self.bounded.read(int.from_bytes(self.read(4), "little"))
        self.stack.append(str(data, "utf-8", "surrogatepass"))

    # stack and memo
    def do_mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    do_pop_mark = pop_to_mark

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, index: int) -> None:
        if not 0 <= index <= len(self.memo) + 1:  # in order, from 0 or (Python 2) 1
            raise UnpickleError("a memo out of order")
        self.memo[index] = self.stack[-1]

    def do_binput(self) -> None:
        self.do_put(self.read(1)[0])

    def do_long_binput(self) -> None:
        self.do_put(int.from_bytes(self.read(4), "little"))

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def do_binget(self) -> None:
        self.stack.append(self.memo[self.read(1)[0]])

    def do_long_binget(self) -> None:
        self.stack.append(self.memo[int.from_bytes(self.read(4), "little")])

    # containers
    def do_empty_list(self) -> None:
        self.stack.append([])

    def do_list(self) -> None:
        values = self.pop_to_mark()
        self.stack.append(values)

    do_empty_set = do_empty_list
    do_frozenset = do_list

    def do_append(self) -> None:
        self.extend([self.stack.pop()])

    def do_appends(self) -> None:
        self.extend(self.pop_to_mark())

    do_additems = do_appends

    def extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def do_empty_tuple(self) -> None:
        self.stack.append(())

    def do_tuple(self) -> None:
        values = self.pop_to_mark()
        self.stack.append(tuple(values))

    def do_tuple1(self) -> None:
        self.stack.append((self.stack.pop(),))

    def do_tuple2(self) -> None:
        last = self.stack.pop()
        self.stack.append((self.stack.pop(), last))

    def do_tuple3(self) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack.append((self.stack.pop(), middle, last))

    def do_empty_dict(self) -> None:
        self.stack.append({})

    def do_dict(self) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self.update(zip(values[::2], values[1::2], strict=True))

    def do_setitem(self) -> None:
        value = self.stack.pop()
        self.update([(self.stack.pop(), value)])

    def do_setitems(self) -> None:
        values = self.pop_to_mark()
        self.update(zip(values[::2], values[1::2], strict=True))

    def update(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in pairs:
                if type(key) is str or self.is_key(key):
                    target[key] = value

    def is_key(self, key: Any) -> bool:
        """Whether a key is kept: text, bytes, None, or a number of at most 60 bits."""
        if key is None or type(key) is str or type(key) is bytes:
            return True
        if type(key) in (bool, float) or (type(key) is int and abs(key) < 2**60):
            self.number_keys_left -= 1
            if self.number_keys_left < 0:
                raise UnpickleError(f"more than {_MOST_NUMBERS_AS_KEYS} keys that are numbers")
            return True
        self.unknown.add("entries with such keys as a " + type(key).__name__)
        return False

    # names and what is made of them
    def name(self, module: Any, attribute: Any) -> Global:
        if type(module) is not str or type(attribute) is not str:
            raise UnpickleError("a name that is no text")
        if len(module) + len(attribute) > _LONGEST_NAME:
            raise UnpickleError(f"a name of more than {_LONGEST_NAME} letters")
        return Global(f"{module}.{attribute}")

    def do_global(self, path: str) -> None:
        module, _, attribute = path.partition(" ")
        self.stack.append(self.name(module, attribute))

    def do_stack_global(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.name(module, attribute))

    def do_ext1(self, code: int) -> None:
        self.stack.append(self.name("copyreg", f"extension_{code}"))

    do_ext2 = do_ext4 = do_ext1

    def do_reduce(self) -> None:
        arguments = self.stack.pop()
        self.make(self.stack.pop(), arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        target = self.stack.pop()
        self.make(Inert(getattr(target, "path", "object")) if keywords else target, arguments)

    def do_inst(self, path: str) -> None:
        arguments = tuple(self.pop_to_mark())
        module, _, attribute = path.partition(" ")
        self.make(self.name(module, attribute), arguments)

    def do_obj(self) -> None:
        target, *arguments = self.pop_to_mark()
        self.make(target, tuple(arguments))

    def make(self, target: Any, arguments: Any) -> None:
        """What "call target with arguments" leaves on the stack: a record, or an inert object."""
        path = getattr(target, "path", "object")
        if isinstance(target, Global) and isinstance(arguments, tuple) and len(arguments) <= MOST_ARGUMENTS:
            self.count_copies(arguments)
            if path in BUILDERS:
                self.stack.append(BUILDERS[path](*arguments))
                return
            if path == "collections.OrderedDict":
                self.stack.append(OrderedDict())
                self.update(arguments[0] if arguments else ())
                return
        if path in ("copyreg._reconstructor", "copy_reg._reconstructor") and arguments:
            path = getattr(arguments[0], "path", path)
        self.unknown.add(path)
        self.stack.append(Inert(path))

    def count_copies(self, values: tuple) -> None:
        for value in values:
            if type(value) in _COPIED:
                self.copies_left -= len(value)
        if self.copies_left < 0:
            raise UnpickleError("objects are copied more often than a checkpoint does")

    def do_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, ArrayRecord):
            self.count_copies(state)
            target.fill(state)
        elif isinstance(target, ArrayDtype):
            target.order = state[1]
        # anything else keeps no state: an OrderedDict's _metadata, an inert object's attributes

    def do_binpersid(self) -> None:
        """A tensor's storage: ("storage", type, key, location, length); any other reference is inert."""
        reference = self.stack.pop()
        path = "persistent reference"
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] in ("storage", b"storage"):
            kind, key, _, numel = reference[1:5]
            path = getattr(kind, "path", path)
            whole = len(reference) == 5 or reference[5] is None  # before 0.4 it could be part of another
            if path in STORAGE_DTYPES and whole and type(key) is str and type(numel) is int and numel >= 0:
                self.storages[key] = storage = Storage(STORAGE_DTYPES[path], key, numel)
                self.stack.append(storage)
                return
        self.unknown.add(path)
        self.stack.append(Inert(path))

    def do_persid(self, _: str) -> None:
        self.unknown.add("persistent reference")
        self.stack.append(Inert("persistent reference"))


class _Steps(dict[bytes, Callable[[_Machine], object]]):
    """What each opcode does."""

    def __missing__(self, opcode: bytes) -> Any:
        if opcode:
            raise UnpickleError(f"opcode {opcode!r} is not read")
        raise CutShort("it ends in the middle of a pickle")


def _step(opcode: pickletools.OpcodeInfo) -> Callable[[_Machine], object] | None:
    method = getattr(_Machine, f"do_{opcode.name.lower()}", None)
    if opcode.arg is None or opcode.name in _READ_BY_THEMSELVES:
        return method
    read = opcode.arg.reader
    if opcode.name in _PUSH:
        return lambda machine: machine.stack.append(read(machine.bounded))
    if opcode.name in ("PROTO", "FRAME"):
        return lambda machine: read(machine.bounded)
    return method and (lambda machine: method(machine, read(machine.bounded)))


_READ_BY_THEMSELVES = "BININT1 BININT BINUNICODE BINPUT LONG_BINPUT BINGET LONG_BINGET".split()
_STEPS = _Steps(
    {opcode.code.encode("latin1"): step for opcode in pickletools.opcodes if (step := _step(opcode))}
)
