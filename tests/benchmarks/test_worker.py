import os
import signal
import sys

import pytest

from benchmarks import start_up
from benchmarks.worker import SEARCH, Worker, WorkerError

SUBJECT = """
import os, signal
from benchmarks.worker import serve

class Subject:
    total = 0
    def add(self, number):
        print("chatter")
        os.system("echo more chatter")
        self.total += number
        return self.total
    def fail(self):
        raise ValueError("the reason")
    def threads(self):
        return os.environ["OMP_NUM_THREADS"]
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

serve(Subject())
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "subject_for_test.py").write_text(SUBJECT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("subject_for_test", sys.executable, threads=1) as worker:
        yield worker


def test_a_process_keeps_its_state_and_may_print(worker):
    assert worker.call("add", number=2) == 2
    assert worker.call("add", number=3) == 5
    assert worker.call("threads") == "1"


def test_an_error_carries_its_reason_and_the_process_lives_on(worker):
    with pytest.raises(WorkerError, match=r"fail: ValueError: the reason"):
        worker.call("fail")
    assert worker.call("add", number=1) == 1


def test_a_killed_process_is_reported(worker):
    with pytest.raises(WorkerError, match="out of memory"):
        worker.call("die")


def test_closing_ends_the_process(worker):
    worker.call("add", number=1)
    process = worker._process.pid
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


def test_the_checkout_does_not_shadow_an_installed_package(tmp_path, monkeypatch):
    """After a plain `pip install .` the checkout's frcnn_ops has no compiled part, and stands in the way."""
    clone = tmp_path / "clone"
    (clone / "frcnn_ops").mkdir(parents=True)
    (clone / "frcnn_ops" / "__init__.py").write_text("raise ImportError('not compiled')")
    (tmp_path / "uses_operators.py").write_text("import frcnn_ops\n" + SUBJECT)
    monkeypatch.chdir(clone)  # where `python benchmarks/run.py` is typed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Worker("uses_operators", sys.executable, threads=1) as worker:
        assert worker.call("add", number=1) == 1
    assert start_up.SCRIPT.startswith(SEARCH)
