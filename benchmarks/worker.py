"""A subject of the benchmark in a process of its own.

Requests and replies are lines of JSON, so that two subjects that cannot share a process (another torch,
another library) take turns by single iterations. The subject measures its own time: the pipe costs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


# An installed frcnn comes first, the checkout's folder last: its frcnn_ops need not be compiled.
SEARCH = f"import sys; sys.path = [folder for folder in sys.path if folder] + [{str(ROOT)!r}]"
"""What a fresh interpreter runs first, to find the benchmarks and whatever frcnn is installed."""


class WorkerError(RuntimeError):
    """A request failed, or the process ended."""


class Worker:
    """A process that runs a module, which answers calls of its subject's methods."""

    def __init__(self, module: str, python: str | Path = sys.executable, threads: int | None = None):
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
        self.module = module
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [str(python), "-c", f"{SEARCH}; import runpy; runpy.run_module({module!r}, run_name='__main__')"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of the subject's method; raises WorkerError with the other side's message."""
        try:
            self._process.stdin.write(json.dumps({"call": method, "with": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            cause = "it was killed: out of memory?" if code == -9 else f"exit code {code}"
            raise WorkerError(f"{self.module} ended during {method} ({cause})\n{self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.module}: {method}: {reply['error']}")
        return reply["result"]

    def close(self) -> None:
        """End the process; its memory is free afterward."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self, length: int = 2000) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-length:]


def serve(subject: object) -> None:
    """Answer requests from standard input until it ends. What the subject prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": getattr(subject, request["call"])(**request["with"])}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
