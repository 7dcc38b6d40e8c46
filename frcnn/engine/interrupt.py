"""Ctrl-C and termination: finish what is under way, save, stop; a second one ends the process at once.

Two parties look at a signal. Python's handler runs in the main thread, between two of its instructions, and
notes the request; only while training starts up it raises. While the main thread is inside native code, such
as waiting for another process, no handler runs; so a small thread of its own handles a second signal. It
reads every signal's number from Python's wake-up descriptor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST = 2.0
"""Seconds in which a signal of the same kind is the same request. A scheduler that ends a job signals every
process of it, torchrun among them, which passes the signal on: each process gets it twice. So does a process
whose parent and whose group are both signaled."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped training or detection; the message says what is saved.

    exit_code: 128 + the signal's number, as shells have it. resumable: whether there is a checkpoint to
    continue from.
    """

    def __init__(self, message: str, number: int | None = None, resumable: bool = True):
        super().__init__(message)
        self.exit_code = 128 + (signal.SIGTERM if number is None else number)
        self.resumable = resumable


class StopRequest:
    """Set by the first SIGINT (Ctrl-C) or SIGTERM. A second one, of the other kind or later than
    `SAME_REQUEST`, kills the child processes and ends this one with exit code 128 + its number.

    A context manager. Signals reach the main thread only; elsewhere it never becomes set.
    finishing: what is still done after the first signal, in words; ending: how a second one ends.
    """

    def __init__(self, finishing: str = "this step", ending: str = "without saving") -> None:
        self.finishing = finishing
        self.ending = ending
        self.number: int | None = None
        """The first signal's."""
        self._at_once = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # a socket, as Windows has no other descriptor that a signal can wake
            self._numbers, self._waker = socket.socketpair()
            self._waker.setblocking(False)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
            self._previous_waker = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_waker)
        self._waker.send(b"\0")
        self._watcher.join()
        self._numbers.close()
        self._waker.close()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that KeyboardInterrupt may cut short anywhere: it has nothing to save and no children."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.number = number
        if self._at_once:
            raise KeyboardInterrupt
        # not by print: the handler may have interrupted one
        _tell(f"stopping after {self.finishing}; again in {SAME_REQUEST:.0f} s or later: ends {self.ending}")

    def _watch(self) -> None:
        first: tuple[int, float] | None = None
        while True:
            for number in self._numbers.recv(64):
                if number == 0:
                    return
                if number not in SIGNALS:
                    continue
                now = time.monotonic()
                if first is None:
                    first = number, now
                elif number != first[0] or now - first[1] > SAME_REQUEST:
                    self._end(number)

    def _end(self, number: int) -> None:
        _tell(f"ended {self.ending}")
        children = multiprocessing.active_children()
        # nothing between the kills and the exit: the main thread must not get to report a lost child
        for child in children:
            child.kill()
        os._exit(128 + number)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
