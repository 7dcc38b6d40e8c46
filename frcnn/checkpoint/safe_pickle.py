"""Reads pickles as data: nothing in a file is ever imported or called.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program names.
This one is written out here, over `pickletools` (which only decodes), so that what it can do is plain to
see: it builds containers, numbers, strings, and records of tensors and arrays. Every other class or function
named by a file becomes an `Inert` object that ignores whatever is done to it.

Time and memory are bounded as well. Only text and single numbers are hashed, since a nested tuple as key can
take exponential time or the C stack; an entry with another key is left out, and a set is read as a list.
Names are text of bounded length; steps, copies and keys that are numbers are counted.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from frcnn.checkpoint.records import (
    BUILDERS,
    MOST_ARGUMENTS,
    STORAGE_DTYPES,
    ArrayDtype,
    ArrayRecord,
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
        limit: how many bytes of the file may be read at most; announced lengths are checked against it.

    Raises:
        UnpickleError: truncated or malformed, or far from what a checkpoint holds.
    """
    machine = _Machine(limit)
    stream = cast(IO[bytes], _Bounded(file, limit))  # as much of a file as genops uses
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if steps > _MOST_STEPS:
                raise UnpickleError(f"more than {_MOST_STEPS} pickled steps; a checkpoint has fewer")
            machine.step(opcode.name, argument)
    except UnpickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError) as error:
        raise UnpickleError(f"not a whole pickle: {error}") from error
    return Unpickled(machine.result, tuple(sorted(machine.unknown)), machine.storages)


class _Bounded:
    """Refuses to read past the end, before any memory is set aside for a length that a file merely claims."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file = file
        self.left = limit

    def read(self, size: int) -> bytes:
        if size < 0 or size > self.left:
            raise UnpickleError("the file ends in the middle of an object")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(min(self.left, 1 << 20))
        self.left -= len(line)
        return line


_MOST_STEPS = 1_000_000
_MOST_NUMBERS_AS_KEYS = (
    50_000  # numbers with colliding hashes, which are easily made, cost their number squared
)
_LONGEST_NAME = 500
_MARK = object()
_PUSH = frozenset(
    # numbers and strings, which pickletools has decoded already
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SKIP = frozenset({"PROTO", "FRAME"})


class _Machine:
    """The stack machine; one method per family of opcodes, `step` tells which."""

    def __init__(self, size: int) -> None:
        self.copies_left = 4 * size + 65536  # an object can be named again and again, but not copied so
        self.number_keys_left = _MOST_NUMBERS_AS_KEYS
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.unknown: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name not in _SKIP:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise UnpickleError(f"opcode {name} is not read")
            method(argument)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise UnpickleError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise UnpickleError("a mark is missing")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise UnpickleError("a mark where a value belongs")
        return self.stack[-1]

    # stack and memo
    def do_stop(self, _: Any) -> None:
        self.result = self.pop()

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.top())

    def do_put(self, index: int) -> None:
        if not 0 <= index <= len(self.memo) + 1:  # in order, from 0 or (Python 2) 1
            raise UnpickleError("a memo out of order")
        self.memo[index] = self.top()

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    # containers
    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_list(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    do_empty_set = do_empty_list
    do_frozenset = do_list

    def do_append(self, _: Any) -> None:
        self.extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self.extend(self.pop_to_mark())

    do_additems = do_appends

    def extend(self, values: list[Any]) -> None:
        if isinstance(self.top(), list):
            self.top().extend(values)

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def do_tuple3(self, _: Any) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_dict(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self.update(zip(values[::2], values[1::2], strict=True))

    def do_setitem(self, _: Any) -> None:
        value = self.pop()
        self.update([(self.pop(), value)])

    def do_setitems(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.update(zip(values[::2], values[1::2], strict=True))

    def update(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        target = self.top()
        if isinstance(target, dict):
            target.update((key, value) for key, value in pairs if self.is_key(key))

    def is_key(self, key: Any) -> bool:
        """Whether a key is kept: text, bytes, None, or a number of at most 60 bits."""
        if key is None or type(key) in (str, bytes):
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

    def do_stack_global(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        self.stack.append(self.name(module, attribute))

    def do_ext1(self, code: int) -> None:
        self.stack.append(self.name("copyreg", f"extension_{code}"))

    do_ext2 = do_ext4 = do_ext1

    def do_reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.make(self.pop(), arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        keywords, arguments = self.pop(), self.pop()
        target = self.pop()
        self.make(Inert(getattr(target, "path", "object")) if keywords else target, arguments)

    def do_inst(self, path: str) -> None:
        arguments = tuple(self.pop_to_mark())
        module, _, attribute = path.partition(" ")
        self.make(self.name(module, attribute), arguments)

    def do_obj(self, _: Any) -> None:
        target, *arguments = self.pop_to_mark()
        self.make(target, tuple(arguments))

    def make(self, target: Any, arguments: Any) -> None:
        """What "call target with arguments" leaves on the stack: a record, or an inert object."""
        path = getattr(target, "path", "object")
        known = (
            isinstance(target, Global) and isinstance(arguments, tuple) and len(arguments) <= MOST_ARGUMENTS
        )
        if known and (path in BUILDERS or path == "collections.OrderedDict"):
            self.count_copies(arguments)
            if path in BUILDERS:
                self.stack.append(BUILDERS[path](*arguments))
            else:
                self.stack.append(OrderedDict())
                self.update(arguments[0] if arguments else ())
            return
        if path in ("copyreg._reconstructor", "copy_reg._reconstructor") and arguments:
            path = getattr(arguments[0], "path", path)
        self.unknown.add(path)
        self.stack.append(Inert(path))

    def count_copies(self, values: tuple) -> None:
        self.copies_left -= sum(
            len(value) for value in values if isinstance(value, str | bytes | bytearray | list | tuple)
        )
        if self.copies_left < 0:
            raise UnpickleError("objects are copied more often than a checkpoint does")

    def do_build(self, _: Any) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, ArrayRecord):
            self.count_copies(state)
            target.fill(state)
        elif isinstance(target, ArrayDtype):
            target.order = state[1]
        # anything else keeps no state: an OrderedDict's _metadata, an inert object's attributes

    def do_binpersid(self, _: Any) -> None:
        """A tensor's storage: ("storage", type, key, location, length); any other reference is inert."""
        reference = self.pop()
        path = "persistent reference"
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] in ("storage", b"storage"):
            kind, key, _, numel = reference[1:5]
            path = getattr(kind, "path", path)
            whole = (
                len(reference) == 5 or reference[5] is None
            )  # before 0.4 a storage could be part of another
            if path in STORAGE_DTYPES and whole and type(key) is str and type(numel) is int and numel >= 0:
                self.storages[key] = storage = Storage(STORAGE_DTYPES[path], key, numel)
                self.stack.append(storage)
                return
        self.unknown.add(path)
        self.stack.append(Inert(path))

    def do_persid(self, _: Any) -> None:
        self.unknown.add("persistent reference")
        self.stack.append(Inert("persistent reference"))
