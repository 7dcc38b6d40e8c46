"""Two processes train together, each on an emulated device of its own, over the emulated NCCL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_coco import write_tiny

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HERE = Path(__file__).resolve().parent


@pytest.fixture
def data(tmp_path):
    write_tiny(tmp_path / "data")
    return tmp_path / "data"


def test_two_processes_are_one_that_has_both_batches(data):
    command = [*TORCHRUN, str(HERE / "both_ranks.py"), str(data)]
    found = os.pathsep.join(sys.path)  # of this file's imports
    finished = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": found}, capture_output=True, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "fault" not in finished.stderr and "Grad strides" not in finished.stderr
    assert (data / "run" / "last.pth").exists()


def run_and_resume(data, tmp_path, hooks, said, disturb=lambda agent, text: None):
    """A run that the loss of a process ends, with a message that has `said`, and that goes on by --resume.

    Returns what the run printed.
    """
    run = [str(HERE.parent / "engine" / "runs.py"), "train", "tiny", "--device", "cuda", "--workers", "0"]
    run += ["--train-annotations", str(data / "annotations.json"), "--train-images", str(data / "images")]
    run += ["--work-dir", str(tmp_path / "run"), "--batch-size", "1"]
    run += ["--epochs", "5", "--timeout", "20"]
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        hooked = {**os.environ, "RUN_HOOKS": json.dumps(hooks)}
        agent = subprocess.Popen([*TORCHRUN, *run], env=hooked, stdout=file, stderr=file)
    disturb(agent, output.read_text)
    # the other gives up after 20 seconds; torchrun kills what does not answer after 30 more
    assert agent.wait(300) != 0
    text = output.read_text()
    assert f"{said}. What came after step " in text, text
    assert "by --resume" in text
    resumed = subprocess.run([*TORCHRUN, *run, "--resume"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout and "epoch 5 [3/3]" in resumed.stdout
    return text


def test_a_killed_process_ends_the_other_and_the_run_can_go_on(data, tmp_path):
    def kill(agent, text):
        limit = time.monotonic() + 300
        while "epoch 2 [" not in text():
            assert agent.poll() is None and time.monotonic() < limit, text()
            time.sleep(0.1)
        listed = subprocess.run(
            ["ps", "--ppid", str(agent.pid), "-o", "pid="], capture_output=True, text=True
        )
        os.kill(max(map(int, listed.stdout.split())), signal.SIGKILL)

    # torch's watchdog may notice, and say so, before the host does
    run_and_resume(
        data, tmp_path, {"slow_step": 0.3}, "another process was killed, or has failed and says why", kill
    )


# It stops before its part of NCCL's work, which the other's GPU waits for without an end. The other's host
# begins to wait a second later, before the next step (the fifth) or at an epoch's end (after the sixth).
@pytest.mark.parametrize("step", [4, 5])
def test_a_process_that_hangs_ends_the_other_and_the_run_can_go_on(data, tmp_path, step):
    hooks = {"slow_step": 1.0, "stopped_in": step}
    said = "another process hangs, or needs longer than --timeout SECONDS allows"
    assert "[rank" not in run_and_resume(data, tmp_path, hooks, said)  # NCCL's limit is not reached
