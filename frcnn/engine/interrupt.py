"""Ctrl-C and termination while training: finish the step, save, stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training was stopped and everything is saved; the message says how to go on."""


class StopRequest:
    """Set by the first SIGINT (Ctrl-C) or SIGTERM; a second Ctrl-C aborts at once.

    A context manager. Signals reach the main thread only; elsewhere it never becomes set.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be cut short, as nothing of it needs saving."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (self.requested and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step; Ctrl-C again aborts without saving", file=sys.stderr, flush=True)
