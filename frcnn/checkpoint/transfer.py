"""One transfer of a file over HTTP, bounded in bytes and in time whatever the server does.

The standard library's client waits for a server that sends a byte now and then, in its headers as in its
body, follows redirects to other protocols and reads the bodies of redirects into memory. Here a watchdog
hangs up on what stalls, and redirects are followed by hand.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

MAX_BYTES = 2 << 30
"""Largest file that is accepted; the published ones have 45 to 400 MB."""
TIMEOUT_SECONDS = 30.0
"""Silence after which a connection counts as broken."""
STALL_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 10_000
"""A transfer that brings less over STALL_SECONDS is broken off."""
MAX_REDIRECTS = 5
_CHUNK = 1 << 20

T = TypeVar("T")


class DownloadError(OSError):
    """A published file could not be downloaded; the message says which file to put where."""


class BrokenTransfer(Exception):
    """A transfer that failed, but which another attempt may complete."""


def transfer(address: str, part: Path, deadline: float, progress: bool) -> None:
    """Append the missing end of `part`; a server that cannot resume is read from the start.

    Args:
        deadline: in the time of `time.monotonic`.
        progress: show a bar on a terminal.

    Raises:
        BrokenTransfer: the connection or the server failed; `part` has what came.
        DownloadError: this address will not deliver the file.
        OSError: `part` cannot be written.
    """
    held = part.stat().st_size if part.exists() else 0
    with _Watchdog(deadline) as watchdog:
        response = watchdog.guard(lambda: _open(address, held, watchdog))
        if response is None:  # nothing lies beyond what we hold: it is whole, or not this file
            return
        with response:
            if response.status == 206:
                start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                if start is None or start.group(1) != str(held):
                    part.unlink(missing_ok=True)
                    raise BrokenTransfer("it sent another range than the one asked for")
            else:
                held = 0
            # None where the server announces no length that is a number; then the hash alone decides
            total = None if response.length is None else held + response.length
            if total is not None and total > MAX_BYTES:
                raise DownloadError(f"the file has {total} bytes, more than the {MAX_BYTES} allowed")
            bar = tqdm(
                total=total,
                initial=held,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                disable=None if progress else True,
            )
            with open(part, "ab" if held else "wb") as out, bar:
                for piece in _pieces(response, watchdog, held, total, MAX_BYTES):
                    held += len(piece)
                    out.write(piece)
                    bar.update(len(piece))
    if held > MAX_BYTES:
        part.unlink()
        raise DownloadError(f"it sends more than the {MAX_BYTES} bytes allowed")
    if total is not None and held < total:
        raise BrokenTransfer(f"the transfer broke off after {held} bytes")


def fetch(address: str, most: int, seconds: float) -> bytes:
    """A small file, to memory, in one attempt.

    Args:
        most: bytes; a longer file is refused.
        seconds: the time that all of it may take.

    Raises:
        BrokenTransfer: the connection or the server failed.
        DownloadError: this address will not deliver the file.
    """
    with _Watchdog(time.monotonic() + seconds) as watchdog:
        response = watchdog.guard(lambda: _open(address, 0, watchdog))
        assert response is not None  # which answers a request for the end of a file
        with response:
            total = response.length
            if total is not None and total > most:
                raise DownloadError(f"the file has {total} bytes, more than the {most} allowed")
            body = b"".join(_pieces(response, watchdog, 0, total, most))
    if len(body) > most:
        raise DownloadError(f"it sends more than the {most} bytes allowed")
    if total is not None and len(body) < total:
        raise BrokenTransfer(f"the transfer broke off after {len(body)} bytes")
    return body


def _pieces(
    response: http.client.HTTPResponse, watchdog: _Watchdog, held: int, total: int | None, most: int
) -> Iterator[bytes]:
    """The body, as it comes, until it ends, has `total` bytes with the `held` ones, or exceeds `most`."""
    while held <= most and (total is None or held < total):
        piece = watchdog.guard(lambda: response.read1(_CHUNK))
        if not piece:
            return
        held += len(piece)
        watchdog.received += len(piece)
        yield piece


def _open(address: str, held: int, watchdog: _Watchdog) -> http.client.HTTPResponse | None:
    """The answer to a request for what follows the `held` bytes; None if nothing does (416)."""
    opener = _opener(watchdog)
    schemes = {"https", urllib.parse.urlsplit(address).scheme} & {"http", "https"}  # never back to http
    for _ in range(1 + MAX_REDIRECTS):
        if urllib.parse.urlsplit(address).scheme not in schemes:
            raise DownloadError(f"{_short(address)} is not {' or '.join(sorted(schemes))}")
        request = urllib.request.Request(address, headers={"User-Agent": "frcnn"})
        if held:
            request.add_header("Range", f"bytes={held}-")
        try:
            return opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and held:
                return None
            if error.code in (301, 302, 303, 307, 308) and "Location" in error.headers:
                address = urllib.parse.urljoin(address, error.headers["Location"])
                continue
            if error.code >= 500 or error.code in (408, 416, 429):
                raise BrokenTransfer(f"the server answered {error.code}") from None
            raise DownloadError(f"the server answered {error.code}") from None
    raise DownloadError("the server redirects without end")


def _opener(watchdog: _Watchdog) -> urllib.request.OpenerDirector:
    """urllib's client for http and https, proxies included, that shows its sockets to the watchdog."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watchdog.watch(self.sock)

    class Secure(http.client.HTTPSConnection, Plain):  # connects by Plain, then begins TLS
        pass

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        Http(),
        Https(),
    ):
        opener.add_handler(handler)
    return opener


WATCHDOG = "watchdog of a transfer"


class _Watchdog:
    """Hangs up on a transfer that is too slow or past its deadline, in whatever the client is waiting."""

    def __init__(self, deadline: float):
        self.received = 0
        self._reason = ""
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=WATCHDOG, daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for connection in self._sockets:
            connection.close()

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection.dup())  # TLS takes the original over
        if self._reason:
            raise TimeoutError(self._reason)

    def guard(self, call: Callable[[], T]) -> T:
        """The call's result; whatever fails in the client or on the way raises BrokenTransfer."""
        try:
            result = call()
        except DownloadError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = self._reason or f"no connection ({_short(getattr(error, 'reason', error))})"
            raise BrokenTransfer(cause) from error
        if self._reason:
            raise BrokenTransfer(self._reason)
        return result

    def _run(self) -> None:
        before = 0
        while not self._over.wait(min(STALL_SECONDS, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self._reason = "there is no time left for it"
            elif self.received - before < MIN_BYTES_PER_SECOND * STALL_SECONDS:
                self._reason = (
                    f"it sent {self.received - before} bytes in {STALL_SECONDS:g} s, which is too slow"
                )
            else:
                before = self.received
                continue
            for connection in list(self._sockets):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return


def _short(value: object) -> str:
    """Text that may come from a server, made printable and short for a message."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:200])
