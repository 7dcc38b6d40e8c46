"""The one place where exceptions become messages of the command line.

A user's error is one message in the command line's own terms, without a traceback; a bug keeps its traceback
and says that it is one. With FRCNN_DEBUG=1 in the environment every error keeps its traceback.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

PROGRAM = "frcnn"
DEBUG = "FRCNN_DEBUG"
FAILED, MISUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141  # the last two as a shell counts signals


class UsageError(ValueError):
    """The command line itself is wrong: an unknown command or option."""


def exit_code(command: Callable[[], int | None], options: Collection[str], given: Sequence[str] = ()) -> int:
    """Run a command; whatever goes wrong is told on stderr, in one message.

    options: the command's parameters as Python spells them, "schedule.lr" for the fields of a dataclass;
    given: the words of the command line, which messages repeat as they are.
    """
    names = set(options) - set(given)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(
            f"warning: {in_option_terms(str(message), names)}"
        )
        try:
            try:
                code = command()
            except SystemExit as end:
                code = end.code  # type: ignore[assignment]
            sys.stdout.flush()
            return code or 0
        except KeyboardInterrupt:
            _say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            # The reader, `head` for example, has seen enough. Python flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except Exception as error:
            message = user_message(error)
            if message is None or os.environ.get(DEBUG, "0") != "0":
                traceback.print_exc()
            if message is None:
                message = f"a bug of {version()}: please report it with the lines above and the command line"
            _say(in_option_terms(message, names))
            return MISUSED if isinstance(error, UsageError) else FAILED


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
    return None


def in_option_terms(text: str, options: Collection[str]) -> str:
    """A message with Python's spelling of options, batch_size or weights=PATH, in the command line's.

    Words are left alone where they may be prose: an option without an underscore or a dot counts only when
    "=" follows it, or when the message is that it "must" be something.
    """

    def spelled(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        told = match.start() == 0 and text.startswith(" must ", match.end())
        if name not in options or not (told or value is not None or "_" in name or "." in name):
            return match[0]
        option = option_spelling(name)
        return option if value in (None, "", "True") else f"{option} {value}"

    name = r"(?<![\w./\\-])(?P<name>[a-z]\w*(?:\.[a-z]\w*)*)(?![\w/\\])"
    return re.sub(name + r"(?:=(?P<value>(?:[^\s,;()]*[^\s,;:.()])?))?", spelled, text)


def option_spelling(name: str) -> str:
    """--schedule.clip-grad-norm for schedule.clip_grad_norm."""
    return "--" + name.replace("_", "-")


def option_names(command: Callable[..., Any]) -> set[str]:
    """A command's parameters, and the fields of those whose defaults are dataclasses, with dots."""
    return {
        name
        for parameter in inspect.signature(command).parameters.values()
        for name in _names(parameter.name, parameter.default)
    }


def unknown(kind: str, word: str, known: Collection[str]) -> UsageError:
    """The error for a word that is none of the known ones; it names the nearest."""
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return UsageError(f"no {kind} {word!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def version() -> str:
    """The versions of frcnn and torch, without importing torch."""
    from importlib import metadata

    from frcnn import __version__

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "missing"
    return f"{PROGRAM} {__version__}, torch {torch}"


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _names(name: str, default: Any) -> Iterator[str]:
    yield name
    if dataclasses.is_dataclass(default):
        for field in dataclasses.fields(default):
            yield from _names(f"{name}.{field.name}", getattr(default, field.name))


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
