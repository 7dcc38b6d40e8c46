"""The one place where exceptions become messages of the command line.

A user's error is one message in the command line's own terms, without a traceback; a bug keeps its traceback
and says that it is one. With FRCNN_DEBUG=1 in the environment every error keeps its traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from frcnn.checked import OptionError

PROGRAM = "frcnn"
DEBUG = "FRCNN_DEBUG"
FAILED, MISUSED, PIPE_CLOSED = 1, 2, 141  # the last as a shell counts signals


def exit_code(
    command: Callable[[], int | None], spellings: Mapping[str, str], given: Sequence[str] = ()
) -> int:
    """Run a command; whatever goes wrong is reported on stderr, in one message.

    spellings: the command's parameters as Python's messages have them -> as the command line has them;
    given: the words of the command line, which messages repeat as they are.
    """
    words = {word.partition("=")[0] for word in given}
    names = {name: spelling for name, spelling in spellings.items() if name not in words}
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings(), _interrupts() as interrupts:
        warnings.showwarning = lambda message, *_, **__: _say(
            f"warning: {in_option_terms(str(message), names)}"
        )
        try:
            try:
                code = command()
            except SystemExit as end:
                code = end.code  # type: ignore[assignment]
            print(end="", flush=True)
            return code or 0
        except KeyboardInterrupt as interrupt:
            ended = None if interrupt.__suppress_context__ else interrupt.__context__
            if isinstance(ended, Exception) and (told := user_message(ended)) is not None:
                _say(in_option_terms(told, names))  # the signal came while its clean-up ran
            return _interrupted(interrupts)
        except BrokenPipeError:
            # The reader, `head` for example, has seen enough. Python flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except Exception as error:
            if interrupts:
                return _interrupted(interrupts)
            message = user_message(error)
            if message is None or os.environ.get(DEBUG, "0") != "0":
                traceback.print_exc()
            if message is None:
                message = f"a bug of {version()}: please report it with the lines above and the command line"
            _say(in_option_terms(message, names))
            return MISUSED if isinstance(error, OptionError) else FAILED


def user_message(error: Exception) -> str | None:
    """What to tell the user, or None for an error that is none of theirs, but a bug."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save on a full disk says "unexpected pos"
    text = _without_worker_traceback(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    if _is_short_of_memory(error, text):
        first = text.splitlines()[0] if text else type(error).__name__
        return f"not enough memory ({first}): smaller batches, smaller images or fewer workers need less"
    if isinstance(error, OSError) or _package(type(error).__module__) == "frcnn":
        return text
    # numpy's or torch's ValueErrors are our mistakes; ours are the user's
    if isinstance(error, ValueError) and _package(_raised_in(error)) in ("frcnn", "frcnn_ops"):
        return text
    if isinstance(error, ImportError) and "pip install" in text:  # ours of an extra that is missing
        return text
    return None


def in_option_terms(text: str, spellings: Mapping[str, str]) -> str:
    """A message with Python's spelling of options, batch_size or size=(64, 48), in the command line's.

    Words are left alone where they may be prose: an option without an underscore or a dot counts only when
    "=" follows it, or when the message is that it "must" be something.
    """

    def spelled(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if match[0] in spellings and (value is not None or "_" in name or "." in name):  # draw=False
            return spellings[match[0]]
        told = match.start() == 0 and text.startswith(" must ", match.end())
        if name not in spellings or not (told or value is not None):
            return match[0]
        if not value or (value == "True" and "." not in name):  # a flag
            return spellings[name]
        if value[0] in "[(":
            value = value[1:-1].replace(",", "")
        return f"{spellings[name]}{match['link'].replace('=', ' ')}{value}"

    name = r"(?<![\w./\\-])(?P<name>[A-Za-z]\w*(?:\.[a-z]\w*)*)(?![\w/\\])"
    value = r"\[[^\]]*\]|\([^)]*\)|(?:[^\s,;()]*[^\s,;:.()])?"
    return re.sub(name + rf"(?:(?P<link>=| is (?=[\[(]))(?P<value>{value}))?", spelled, text)


def version() -> str:
    """The versions of frcnn and torch, without importing torch."""
    from importlib import metadata

    from frcnn import __version__

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "missing"
    return f"{PROGRAM} {__version__}, torch {torch}"


def _interrupted(signals: Sequence[int]) -> int:
    number = signals[0] if signals else signal.SIGINT
    _say("terminated" if number == signal.SIGTERM else "interrupted")
    return 128 + number


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """SIGINT (Ctrl-C) and SIGTERM are raised and noted: torch, while it imports numpy, swallows what is
    raised, and something breaks later. A second one ends the process at once, as the first would have."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            os._exit(128 + noted[0])
        noted.append(number)
        raise KeyboardInterrupt

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    if threading.current_thread() is not threading.main_thread():
        ours = {}
    for number in ours:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _without_worker_traceback(error: Exception) -> str:
    """An error's text; of one that a loader's process raised, without the traceback there."""
    text = str(error)
    if " in DataLoader worker process " not in text:
        return text
    # "Caught X in DataLoader worker process 0.", the traceback, and at the end "module.X: the message"
    last = re.search(rf"\A.*^(?:[\w.]+\.)?{type(error).__name__}: (.*)\Z", text, re.DOTALL | re.MULTILINE)
    return last[1].rstrip() if last else text


def _is_short_of_memory(error: Exception, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own class
        return True
    signs = "can't allocate memory|DataLoader worker .* (killed|exited)"
    return isinstance(error, RuntimeError) and re.search(signs, text) is not None


def _raised_in(error: Exception) -> str:
    """Name of the module whose code raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "") if frames else ""


def _package(module: str) -> str:
    return module.split(".")[0]
