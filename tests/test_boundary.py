"""Whatever goes wrong is one message in the command line's own terms; a bug keeps its traceback."""

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from importlib import metadata

import numpy as np
import pytest
import torch
from command import run

from frcnn import boundary
from frcnn.cli import detect, train_command
from frcnn.command_line import spellings
from frcnn.zoo.recipes import recipe

SETTINGS = spellings(train_command(recipe("small_r18_fpn"))) | spellings(detect)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pass reinit_heads=True to train", "pass --reinit-heads to train"),
        ("pass weights=PATH.", "pass --weights PATH."),
        ("still has the best (weights=best.pth)", "still has the best (--weights best.pth)"),
        ("may do as a start (weights=)", "may do as a start (--weights)"),
        ("give another work_dir, or", "give another --work-dir, or"),
        ("batch_size=0: it is a whole number", "--batch-size 0: it is a whole number"),
        ("epochs must be at least 1, not 0", "--epochs must be at least 1, not 0"),
        ("or set schedule.clip_grad_norm.", "or set --schedule.clip-grad-norm."),
        (
            "other settings: schedule.lr=0.02, now schedule.lr=0.5",
            "other settings: --schedule.lr 0.02, now --schedule.lr 0.5",
        ),
        ("seed=0, now seed=1. Resume", "--seed 0, now --seed 1. Resume"),
        ("data.rgb=True, now data.rgb=False", "--data.rgb True, now --data.rgb False"),
        ("(size=[64, 48], now size=(80, 60)):", "(--size 64 48, now --size 80 60):"),
        ("(draw=True, now draw=False):", "(no --no-draw, now --no-draw):"),
        ("RPNConfig.neg_iou is 0.9, expected", "--model.rpn.neg-iou is 0.9, expected"),
        # prose, paths, and what is no option of the command
        ("resume that run with other weights", "resume that run with other weights"),
        ("/data/batch_size/x and work_dir/last.pth", "/data/batch_size/x and work_dir/last.pth"),
        ("build it with num_classes=3", "build it with num_classes=3"),
    ],
)
def test_messages_speak_of_options_as_the_command_line_does(text, told):
    assert boundary.in_option_terms(text, SETTINGS) == told


def test_a_word_of_the_command_line_is_repeated_as_it_is(capsys):
    """A folder may be called as an option is."""

    def fail():
        raise FileNotFoundError("work_dir: no such folder, see batch_size")

    assert boundary.exit_code(fail, SETTINGS, ["train", "work_dir"]) == 1
    assert capsys.readouterr().err == "frcnn: work_dir: no such folder, see --batch-size\n"


def test_the_system_s_errors_are_told_without_python(capsys):
    assert boundary.exit_code(lambda: open("/nowhere/file"), {}) == 1
    assert capsys.readouterr().err == "frcnn: /nowhere/file: No such file or directory\n"

    def full():
        raise OSError(28, "No space left on device")

    assert boundary.exit_code(full, {}) == 1
    assert capsys.readouterr().err == "frcnn: No space left on device\n"


def numpy_refuses():
    np.zeros(3) + np.zeros(4)


BUGS = [lambda: {}["key"], lambda: [][1], numpy_refuses, lambda: 1 / 0, lambda: None.x]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_shows_its_traceback_and_says_what_it_is(bug, monkeypatch, capsys):
    monkeypatch.setattr("frcnn.zoo.table.models", lambda name: bug())
    assert run("models") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("frcnn: a bug of frcnn ")
    assert metadata.version("torch") in lines[-1] and "report" in lines[-1]


def test_tracebacks_of_user_errors_are_shown_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("FRCNN_DEBUG", "1")
    assert run("models", "nothing") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("frcnn: no recipe is called")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
    ],
)
def test_too_little_memory_is_no_bug(error, capsys):
    def fail():
        raise error

    assert boundary.exit_code(fail, {}) == 1
    text = capsys.readouterr().err
    assert text.startswith("frcnn: not enough memory (") and text.count("\n") == 1


def test_warnings_are_messages_too(monkeypatch, capsys):
    monkeypatch.setattr("frcnn.zoo.table.models", lambda name: warnings.warn("weights=x", stacklevel=1))
    assert run("models") == 0
    assert capsys.readouterr().err == "frcnn: warning: weights=x\n"  # not an option of `models`


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("frcnn.zoo.table.models", stop)
    assert run("models") == 130
    assert capsys.readouterr().err == "frcnn: interrupted\n"


def test_a_swallowed_ctrl_c_is_no_bug(capsys):
    """torch swallows it while it imports numpy, which is then not whole."""

    def command():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return {}["key"]

    assert boundary.exit_code(command, {}) == 130
    assert capsys.readouterr().err == "frcnn: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_termination_is_one_word(capsys, swallowed):
    """It ended `frcnn eval` without any, and left no time to close what was open."""

    def command():
        with contextlib.suppress(KeyboardInterrupt) if swallowed else contextlib.nullcontext():
            signal.raise_signal(signal.SIGTERM)
        return {}["key"]

    assert boundary.exit_code(command, {}) == 143
    assert capsys.readouterr().err == "frcnn: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_does_not_swallow_the_error_whose_clean_up_it_cuts_short(capsys):
    """torchrun terminates the processes that are left as soon as one has died: before they have said why."""

    def command():
        try:
            raise ConnectionError("another process was killed. Go on by resume=True")
        finally:
            signal.raise_signal(signal.SIGTERM)

    assert boundary.exit_code(command, {"resume": "--resume"}) == 143
    told = "frcnn: another process was killed. Go on by --resume\nfrcnn: terminated\n"
    assert capsys.readouterr().err == told


def test_a_signal_shows_no_error_that_was_dealt_with(capsys):
    def command():
        try:
            raise OSError("not the user's business")
        except OSError:
            pass
        try:
            raise KeyError("nor this")
        except KeyError:
            signal.raise_signal(signal.SIGTERM)

    assert boundary.exit_code(command, {}) == 143
    assert capsys.readouterr().err == "frcnn: terminated\n"


@pytest.mark.parametrize("when", ["while it stops", "while Python ends"])
def test_a_second_signal_ends_without_a_traceback(when, tmp_path):
    script = """
import atexit, os, signal, sys
import frcnn.boundary, frcnn.cli, frcnn.__main__

def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        if sys.argv[1] == "while it stops":
            os.kill(os.getpid(), signal.SIGTERM)

frcnn.cli.main = lambda: sys.exit(frcnn.boundary.exit_code(command, {}))
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
frcnn.__main__.main()
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py", when], capture_output=True, text=True)
    told = "" if when == "while it stops" else "frcnn: interrupted\n"
    assert (done.returncode, done.stderr) == (130, told)


@pytest.mark.parametrize(
    ("shell", "code", "told"),
    [
        ("models >&-", 0, ""),
        ("models >/dev/full", 1, "frcnn: No space left on device\n"),
        ("train --help | cat", 0, ""),
    ],
)
def test_any_stdout_will_do(shell, code, told):
    """Closed, full, or of an encoding without the characters of the help."""
    command = f"set -o pipefail; {sys.executable} -m frcnn {shell}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, told)


WORKERS = """
import sys
import torch
from frcnn import boundary
from frcnn.cli import detect, train_command
from frcnn.command_line import spellings
from frcnn.zoo.recipes import recipe
from frcnn.data.coco import DatasetError

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index == 3:
            {failure}
        return index

def command():
    batches = iter(torch.utils.data.DataLoader(Data(), batch_size=1, num_workers=2))
    return sum(int(batch) for batch in batches)

raise SystemExit(boundary.exit_code(command, dict()))
"""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise DatasetError('a.json: images[3]\\n  is bad')", "frcnn: a.json: images[3]\n  is bad\n"),
        ("open('/nowhere/3.png')", "frcnn: [Errno 2] No such file or directory: '/nowhere/3.png'\n"),
    ],
)
def test_an_error_in_a_loader_s_process_is_its_last_words(failure, message):
    """The whole of stderr: the other processes end without a word, at the interpreter's end too."""
    script = WORKERS.format(failure=failure)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, message)


def test_a_bug_in_a_loader_s_process_stays_a_bug():
    script = WORKERS.format(failure="{}['key']")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "KeyError: 'key'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("frcnn: a bug")


@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["models", "small_r18_fpn"]])
def test_a_closed_pipe_is_quiet(arguments):
    script = f"import sys\nfrom frcnn import cli\nsys.stdin.read()\ncli.main({arguments})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `head` does, before anything is written
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 141
    process.stderr.close()
