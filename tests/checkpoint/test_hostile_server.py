"""Downloads from servers on loopback that do everything wrong.

Whatever a server does, `download` returns the right file or raises DownloadError, within its bounds of size
and time, and leaves no wrong file behind.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
import resource
import socket
import struct
import threading
import time

import pytest

from frcnn.checkpoint import download as weights
from frcnn.checkpoint import transfer
from frcnn.checkpoint.download import DownloadError, download

BODY = random.Random(0).randbytes(60_000)
PREFIX = hashlib.sha256(BODY).hexdigest()[:8]
NAME = f"model-{PREFIX}.pth"
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each connection by a function of (connection, offset asked for); the first ones misbehave."""

    def __init__(self, behave, times: int):
        self.behave, self.times = behave, times
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def address(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/{NAME}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                behave = self.behave if self.times > 0 else honest
                self.times -= 1
                threading.Thread(target=self._answer, args=(behave, connection), daemon=True).start()

    def _answer(self, behave, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(65536)
                if not received:  # the client has hung up
                    return
                request += received
            asked = request.partition(b"bytes=")[2].partition(b"-")[0]
            behave(connection, int(asked or 0), self)


def honest(connection, start, server):
    rest = BODY[start:]
    if start >= len(BODY):
        connection.sendall(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n")
    elif start:
        span = b"Content-Range: bytes %d-%d/%d\r\n" % (start, len(BODY) - 1, len(BODY))
        head = b"HTTP/1.1 206 Partial\r\nContent-Length: %d\r\n" % len(rest)
        connection.sendall(head + span + b"\r\n" + rest)
    else:
        connection.sendall(WHOLE)


def says(*parts: bytes):
    """Sends these bytes, whatever was asked for, and closes."""
    return lambda connection, start, server: connection.sendall(b"".join(parts))


def answers(status: bytes, *headers: bytes, body: bytes = b""):
    return says(b"HTTP/1.1 " + status + b"\r\n", *(header + b"\r\n" for header in headers), b"\r\n", body)


def drips(head: bytes, piece: bytes):
    """Sends `head`, then `piece` every few milliseconds until the client hangs up."""

    def behave(connection, start, server):
        connection.sendall(head)
        while not server.stopped.wait(0.02):
            connection.sendall(piece)

    return behave


def floods(head: bytes, piece: bytes):
    """Sends `head`, then `piece` as fast as it goes until the client hangs up."""

    def behave(connection, start, server):
        connection.sendall(head)
        while not server.stopped.is_set():
            connection.sendall(piece)

    return behave


def falls_silent(head: bytes):
    def behave(connection, start, server):
        connection.sendall(head)
        server.stopped.wait(30)

    return behave


def resets(head: bytes):
    def behave(connection, start, server):
        connection.sendall(head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


def redirects(location: bytes, status: bytes = b"302 Found"):
    return answers(status, b"Location: " + location, b"Content-Length: 0")


def wanders(connection, start, server):
    """A chain of redirects that never ends."""
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /a%d\r\n\r\n" % random.randrange(10**9))


HTML = b"<html>please log in</html>"
HALF = BODY[:30_000]
BEHAVIORS = {
    "closes at once": says(),
    "resets at once": resets(b""),
    "garbage": says(bytes(range(256)) * 4),
    "an empty line": says(b"\r\n\r\n"),
    "a body without a head": says(BODY),
    "a status line without end": says(b"HTTP/1.1 200 " + b"x" * 200_000),
    "a status line that floods": floods(b"HTTP/1.1 200 ", b"x" * 65536),
    "another protocol": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a status that is no number": answers(b"abc OK"),
    "a negative status": answers(b"-200 OK"),
    "a status of five digits": answers(b"99999 OK"),
    "a hundred and one headers": answers(b"200 OK", *[b"X-%d: 1" % n for n in range(101)], body=BODY[:5]),
    "headers that flood": floods(OK, b"X: 1\r\n" * 1000),
    "a header of 200 kB": answers(b"200 OK", b"X: " + b"x" * 200_000),
    "a header without a colon": says(OK, b"no colon here\r\n\r\n", HTML),
    "headers of bytes": says(OK, b"\xff\xfe: \x00\r\n\r\n", HTML),
    "headers cut off": says(OK, b"Content-Le"),
    "a length too large": answers(b"200 OK", b"Content-Length: 70000", body=BODY),
    "a length too small": answers(b"200 OK", b"Content-Length: 100", body=BODY),
    "a length of zero": answers(b"200 OK", b"Content-Length: 0"),
    "an announced terabyte": answers(b"200 OK", b"Content-Length: 1000000000000", body=BODY),
    "two lengths": answers(b"200 OK", b"Content-Length: 10", b"Content-Length: 20", body=BODY),
    "no body": answers(b"200 OK"),
    "no content": answers(b"204 No Content"),
    "half the body": answers(b"200 OK", b"Content-Length: 60000", body=HALF),
    "half the body, no length": answers(b"200 OK", body=HALF),
    "half the body, then a reset": resets(OK + b"Content-Length: 60000\r\n\r\n" + HALF),
    "another body": answers(b"200 OK", b"Content-Length: 60000", body=BODY[::-1]),
    "one bit flipped": answers(b"200 OK", b"Content-Length: 60000", body=BODY[:-1] + bytes([BODY[-1] ^ 1])),
    "one byte more": answers(b"200 OK", body=BODY + b"\n"),
    "a page": answers(b"200 OK", b"Content-Type: text/html", body=HTML),
    "gzip": answers(b"200 OK", b"Content-Encoding: gzip", body=gzip.compress(BODY)),
    "a body without end": floods(OK + b"\r\n", bytes(65536)),
    "chunks without end": floods(CHUNKED, b"10000\r\n" + bytes(65536) + b"\r\n"),
    "a chunk size that is no number": says(CHUNKED, b"zz\r\n", BODY),
    "a negative chunk size": says(CHUNKED, b"-5\r\n", BODY),
    "a huge chunk size": says(CHUNKED, b"F" * 30 + b"\r\n", BODY),
    "a chunk size of 200 kB": says(CHUNKED, b"1" * 200_000 + b"\r\n", BODY),
    "half a chunk": says(CHUNKED, b"EA60\r\n", HALF),
    "no last chunk": says(CHUNKED, b"100\r\n", BODY[:256], b"\r\n"),
    "trailers that flood": floods(CHUNKED + b"EA60\r\n" + BODY + b"\r\n0\r\n", b"X: 1\r\n"),
    "a range from elsewhere": answers(b"206 Partial", b"Content-Range: bytes 7-59999/60000", body=BODY[7:]),
    "a range without bounds": answers(b"206 Partial", body=HALF),
    "a range of words": answers(b"206 Partial", b"Content-Range: bytes all-of/it", body=HALF),
    "a huge range": answers(b"206 Partial", b"Content-Range: bytes " + b"9" * 5000 + b"-/", body=HALF),
    "a range that floods": floods(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\n\r\n", bytes(65536)),
    "always 416": answers(b"416 Range Not Satisfiable", b"Content-Range: bytes */60000"),
    "continue without end": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "switching protocols": answers(b"101 Switching Protocols"),
    "not modified": answers(b"304 Not Modified"),
    "a redirect to itself": redirects(b"/" + NAME.encode()),
    "a chain of redirects": wanders,
    "a redirect to a file": redirects(b"file:///etc/hostname"),
    "a redirect to ftp": redirects(b"ftp://127.0.0.1/" + NAME.encode()),
    "a redirect to data": redirects(b"data:text/plain,hello"),
    "a redirect to nowhere": redirects(b"gopher://x", b"308 Permanent"),
    "a redirect to no address": redirects(b"http://[::bad/"),
    "a redirect with spaces": redirects(b"http://127.0.0.1/a b\x01c"),
    "a redirect to port 99999": redirects(b"http://127.0.0.1:99999/"),
    "a redirect without a target": answers(b"302 Found", b"Content-Length: 0"),
    "a redirect that floods": floods(b"HTTP/1.1 302 Found\r\nLocation: file:///x\r\n\r\n", bytes(65536)),
    **{
        f"status {status}": answers(b"%d No" % status, b"Content-Length: 4", body=b"sad!")
        for status in (300, 400, 401, 403, 404, 407, 408, 410, 429, 451, 500, 502, 503, 599, 999)
    },
    "an error that floods": floods(b"HTTP/1.1 503 Busy\r\n\r\n", bytes(65536)),
    "silence": falls_silent(b""),
    "silence after the head": falls_silent(OK + b"Content-Length: 60000\r\n\r\n"),
    "silence after half": falls_silent(OK + b"Content-Length: 60000\r\n\r\n" + HALF),
    "a status that drips": drips(b"HTTP/1.1 200 ", b"x"),
    "headers that drip": drips(OK, b"X: 1\r\n"),
    "a body that drips": drips(OK + b"\r\n", b"x"),
    "chunks that drip": drips(CHUNKED, b"1\r\nx\r\n"),
}
# Odd, but the file arrives: what a server announces wrongly is ignored, and the hash decides.
HARMLESS = {
    "a length that is no number": answers(b"200 OK", b"Content-Length: many", body=BODY),
    "a negative length": answers(b"200 OK", b"Content-Length: -1", body=BODY),
    "a length of 5000 digits": answers(b"200 OK", b"Content-Length: " + b"9" * 5000, body=BODY),
    "no length": answers(b"200 OK", body=BODY),
    "more than announced": answers(b"200 OK", b"Content-Length: 60000", body=BODY + BODY),
    "a range that nobody asked for": answers(b"206 P", b"Content-Range: bytes 0-59999/60000", body=BODY),
    "chunks": says(CHUNKED, b"ea60;x=y\r\n", BODY, b"\r\n0\r\nX: 1\r\n\r\n"),
    "an old protocol": says(b"HTTP/1.0 200 OK\r\n\r\n", BODY),
    "an early hint": says(b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE),
}


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setattr(weights, "BACKOFF_SECONDS", 0)
    monkeypatch.setattr(transfer, "MAX_BYTES", 300_000)
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def impatient(monkeypatch):
    """A patience so short that a test need not wait; on a busy machine an attempt may fail for it."""
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.1)


@pytest.mark.parametrize("name", list(BEHAVIORS))
def test_a_server_that_only_misbehaves_is_given_up(name, tmp_path, monkeypatch, impatient):
    monkeypatch.setattr(weights, "ATTEMPTS", 2)
    with Server(BEHAVIORS[name], times=100) as server:
        with pytest.raises(DownloadError) as caught:
            download([server.address()], tmp_path, progress=False)
        assert transfer.WATCHDOG not in [thread.name for thread in threading.enumerate()]
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1") and f"put it at {tmp_path / NAME}" in message
    assert len(message) < 1000 and all(c.isprintable() or c == "\n" for c in message)
    assert not (tmp_path / NAME).exists()
    part = tmp_path / f"{NAME}.part"
    assert not part.exists() or part.stat().st_size <= transfer.MAX_BYTES


@pytest.mark.parametrize("held", [0, 20_000, 60_000])
@pytest.mark.parametrize("name", list(BEHAVIORS))
def test_after_a_fault_the_file_arrives_from_here_or_from_the_mirror(
    name, held, tmp_path, monkeypatch, impatient
):
    monkeypatch.setattr(weights, "ATTEMPTS", 10)
    if held:
        (tmp_path / f"{NAME}.part").write_bytes(BODY[:held])
    with Server(BEHAVIORS[name], times=1) as server, Server(honest, times=0) as mirror:
        path = download([server.address(), mirror.address()], tmp_path, progress=False)
    assert path.read_bytes() == BODY
    assert not (tmp_path / f"{NAME}.part").exists()


@pytest.mark.parametrize("name", list(HARMLESS))
def test_what_is_odd_but_whole_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ATTEMPTS", 1)
    with Server(HARMLESS[name], times=1) as server:
        assert download([server.address()], tmp_path, progress=False).read_bytes() == BODY


def test_a_redirect_to_the_file_is_followed(tmp_path):
    with Server(honest, times=0) as other:
        with Server(redirects(other.address().encode(), b"307 Temporary"), times=1) as server:
            assert download([server.address()], tmp_path, progress=False).read_bytes() == BODY


@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "javascript"])
def test_other_schemes_are_refused(scheme, tmp_path):
    with pytest.raises(DownloadError, match="is not https"):
        download([f"{scheme}://{tmp_path}/{NAME}"], tmp_path)


def test_a_wrong_part_is_replaced(tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(bytes(20_000))
    with Server(honest, times=0) as server:
        assert download([server.address()], tmp_path, progress=False).read_bytes() == BODY


def test_a_known_hash_is_compared_in_full(tmp_path, monkeypatch):
    # a file whose hash begins alike: what a forger of the eight digits would serve
    monkeypatch.setitem(weights.SHA256, NAME, PREFIX + "0" * 56)
    with Server(honest, times=0) as server, pytest.raises(DownloadError, match=f"sha256 than {PREFIX}0000"):
        download([server.address()], tmp_path, progress=False)
    for name, sha256 in weights.SHA256.items():
        assert len(sha256) == 64 and sha256.startswith(weights.sha256_prefix(name))


def test_all_attempts_share_one_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TOTAL_SECONDS", 0.1)
    monkeypatch.setattr(transfer, "MIN_BYTES_PER_SECOND", 0)
    with Server(BEHAVIORS["a body that drips"], times=100) as server:
        with pytest.raises(DownloadError, match="no time left"):
            download([server.address()] * 3, tmp_path, progress=False)


def test_a_full_disk_is_called_so(tmp_path):
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    with Server(honest, times=0) as server:
        with pytest.raises(DownloadError, match=r"cannot be stored.*No space left on device"):
            download([server.address()], tmp_path, progress=False)


def test_a_file_size_limit_keeps_the_part(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Server(honest, times=0) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(DownloadError, match=r"cannot be stored.*File too large"):
                download([server.address()], tmp_path, progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / f"{NAME}.part").read_bytes() == BODY[:20_000]
        assert download([server.address()], tmp_path, progress=False).read_bytes() == BODY


def test_what_is_no_folder_or_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be stored"):
        download([f"http://127.0.0.1/{NAME}"], tmp_path / "file" / "cache")
    (tmp_path / NAME).mkdir()
    with pytest.raises(DownloadError, match="cannot be stored"):
        download([f"http://127.0.0.1/{NAME}"], tmp_path)


def test_a_file_in_a_folder_that_cannot_be_written_is_used(tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(BODY)
    monkeypatch.setattr(weights, "_turn", None)  # nothing may be locked, and so written
    assert download([f"http://127.0.0.1/{NAME}"], tmp_path) == tmp_path / NAME


def test_waiting_for_another_process_is_said_and_bounded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "TOTAL_SECONDS", 0.1)
    with weights._turn(tmp_path / f".{NAME}.lock", NAME, time.monotonic()):
        with pytest.raises(DownloadError, match=r"another process has held .* for too long"):
            download([f"http://127.0.0.1/{NAME}"], tmp_path)
    assert f"waiting for another process that downloads {NAME}" in capsys.readouterr().err
