"""`frcnn train` with the tiny recipe in a process of its own, for tests that signal, starve and kill it.

A process that forks from a server which has imported everything starts in a fraction of a second. torchrun
starts this file as a script.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# what a run would import on its way: the optimizer, torch._dynamo
SERVER.set_forkserver_preload(["frcnn.cli", "frcnn.engine.train", "torch._dynamo", "torch.utils.tensorboard"])


def main(arguments: list[str], output: str | None = None, environment: dict | None = None, **hooks) -> None:
    """`frcnn` with these arguments, as the leader of a process group.

    output: where standard output and error go. hooks: slow_step and slow_write (seconds that a step, and an
    fsync, take longer), slow_start (seconds of work before the first step), file_limit (bytes that no file
    may exceed), stuck_at (a step in which native code never returns), fail_at (a step that raises),
    stopped_in (a step that torchrun's last process agrees to begin and then stops in).
    """
    if output is not None:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    multiprocessing.set_start_method(None, force=True)  # the loader's workers start as they do elsewhere
    os.environ.update(environment or {})
    sys.argv[1:] = arguments
    import torch
    from tiny_recipe import STAGE_CHANNELS, tiny_recipe

    import frcnn.backbone
    import frcnn.cli

    torch.set_num_threads(1)
    frcnn.backbone.STAGE_CHANNELS = STAGE_CHANNELS
    frcnn.cli.recipe_named = lambda name: tiny_recipe()
    for name, value in hooks.items():
        HOOKS[name](value)
    frcnn.cli.main()


def slow_step(seconds):
    import frcnn.engine.run as module

    original = module.learning_rate
    module.learning_rate = lambda *args: (time.sleep(seconds), original(*args))[1]


def slow_write(seconds):
    original = os.fsync
    os.fsync = lambda descriptor: (original(descriptor), time.sleep(seconds))


def slow_start(seconds):
    import frcnn.engine.train as module

    original = module.load_datasets

    def load_datasets(*arguments):
        print("starting", flush=True)
        # by parts: a signal between two of Python's instructions does not shorten a sleep that comes after
        for _ in range(int(seconds / 0.01)):
            time.sleep(0.01)
        return original(*arguments)

    module.load_datasets = load_datasets


def file_limit(size):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def stuck_at(step):
    """The main thread never returns from native code: it waits for a lock that it holds itself."""
    import ctypes

    import frcnn.engine.run as module

    original = module.learning_rate

    def learning_rate(iteration, *rest):
        if iteration == step:
            lock = ctypes.CDLL(None).pthread_mutex_lock
            mutex = ctypes.create_string_buffer(256)  # of zeros, which is an open one
            lock(mutex)
            print("stuck", flush=True)
            lock(mutex)
        return original(iteration, *rest)

    module.learning_rate = learning_rate


def fail_at(step):
    import frcnn.engine.run as module
    from frcnn.data import DatasetError

    original = module.learning_rate

    def learning_rate(iteration, *rest):
        if iteration == step:
            raise DatasetError("made to fail")
        return original(iteration, *rest)

    module.learning_rate = learning_rate


def stopped_in(step):
    import frcnn.engine.run as module

    if int(os.environ["RANK"]) + 1 < int(os.environ["WORLD_SIZE"]):
        return
    original = module.TrainingRun._learn

    def learn(self, iteration, *rest):
        if iteration == step:
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, iteration, *rest)

    module.TrainingRun._learn = learn


def group_of(count: int) -> list[dict[str, str]]:
    """The environment that torchrun would give each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank)} for rank in range(count)]


HOOKS = {
    hook.__name__: hook
    for hook in (slow_step, slow_write, slow_start, file_limit, stuck_at, fail_at, stopped_in)
}


class Run:
    """A started process; `text()` is what it has printed."""

    def __init__(self, arguments: list, output: Path, **hooks):
        self.output = output
        self.process = SERVER.Process(
            target=main, args=([str(argument) for argument in arguments], str(output)), kwargs=hooks
        )
        self.process.start()
        self.pid = self.process.pid

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, condition, seconds: float = 300.0) -> None:
        """Until `condition()` holds; fails when the process ends before, or takes too long."""
        limit = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < limit, self.text()
            time.sleep(0.002)

    def wait_for_text(self, text: str) -> None:
        self.wait_for(lambda: text in self.text())

    def signal(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """With its workers, if it has come so far."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL, group=True)
        self.process.kill()
        self.process.join()

    def end(self, seconds: float = 60.0) -> int:
        """The exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"did not end in {seconds} s:\n{self.text()}")
        return self.process.exitcode


if __name__ == "__main__":
    hooks = json.loads(os.environ.get("RUN_HOOKS", "{}"))
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    main(sys.argv[1:], **hooks)
