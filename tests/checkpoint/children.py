"""Runs attacks in forked children, which may crash, hang or eat memory without taking the tests with them."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Mapping

import torch

from frcnn.checkpoint.load import CheckpointError

_SECONDS = 5  # of processor time for one case
_MEGABYTES = 600  # more than before the case
_LONGEST_MESSAGE = 4000


def failures(cases: Mapping[str, Callable[[], object]], seconds: int = _SECONDS) -> dict[str, str]:
    """What happened in each case that did not end in success or a CheckpointError, by its name."""
    names, found, done = list(cases), {}, 0
    while done < len(names):
        lines, status = _in_child([cases[name] for name in names[done:]], seconds)
        for line in lines:
            if line:
                found[names[done]] = line
            done += 1
        if status and done < len(names):  # the child died in the case after the last one that it reported
            signaled = os.WIFSIGNALED(status)
            code = os.WTERMSIG(status) if signaled else os.WEXITSTATUS(status)
            found[names[done]] = signal.Signals(code).name if signaled else f"exit status {code}"
            done += 1
    return found


def _in_child(cases: list[Callable[[], object]], seconds: int) -> tuple[list[str], int]:
    """(a line per finished case, empty where all was well; the child's status)."""
    receiver, sender = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of a fork beside threads, which the child ends with
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(receiver)
            _run(cases, sender, seconds)
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, encoding="utf-8") as file:
        lines = file.read().splitlines()
    return lines, os.waitpid(child, 0)[1]


def _run(cases: list[Callable[[], object]], sender: int, seconds: int) -> None:
    torch.set_num_threads(1)  # the parent's worker threads did not come along
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    if sys.platform == "linux":  # so that the machine survives what the cases are measured for
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), resource.RLIM_INFINITY))
    start = _peak()
    for case in cases:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        line = _outcome(case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = _peak() - start
        if grown > _MEGABYTES:
            line += f" {grown} MB"
        os.write(sender, line.encode("ascii", "backslashreplace") + b"\n")
        if grown > _MEGABYTES:  # the next case is measured in a new child
            break


def _outcome(case: Callable[[], object]) -> str:
    try:
        case()
    except CheckpointError as error:
        said = str(error)
        cause = f"{type(error.__cause__).__name__} {error.__cause__}"
        if "MemoryError" in cause or "allocate memory" in cause:
            return f"asked for too much memory: {cause[:200]!r}"
        if len(said) > _LONGEST_MESSAGE or not said.replace("\n", "").isprintable():
            return f"says {said[:200]!r}"
        return ""
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return ""


def _peak() -> int:
    """Megabytes of memory that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
