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


def torchrun(command, output, disturb=lambda agent: None, **environment):
    """Two processes of a script; returns torchrun's exit code and what all have printed.

    `disturb` is given torchrun's process. What does not end in five minutes fails, and is not left running.
    """
    with open(output, "w") as file:
        agent = subprocess.Popen(
            [*TORCHRUN, *command], env={**os.environ, **environment}, stdout=file, stderr=file
        )
    try:
        disturb(agent)
        # the other gives up after 20 seconds; torchrun kills what does not answer after 30 more
        code = agent.wait(300)
    finally:
        if agent.poll() is None:
            agent.terminate()
            agent.wait(60)
            print(output.read_text())
    return code, output.read_text()


def test_two_processes_are_one_that_has_both_batches(data, tmp_path):
    found = os.pathsep.join(sys.path)  # of this file's imports
    command = [str(HERE / "both_ranks.py"), str(data)]
    code, text = torchrun(command, tmp_path / "output.txt", PYTHONPATH=found)
    assert code == 0, text[-4000:]
    assert "fault" not in text and "Grad strides" not in text
    assert (data / "run" / "last.pth").exists()


def run_and_resume(data, tmp_path, hooks, said, disturb=lambda agent: None):
    """A run that the loss of a process ends, with a message that has `said`, and that goes on by --resume.

    Returns what the run printed.
    """
    run = [str(HERE.parent / "engine" / "runs.py"), "train", "tiny", "--device", "cuda", "--workers", "0"]
    run += ["--train-annotations", str(data / "annotations.json"), "--train-images", str(data / "images")]
    run += ["--work-dir", str(tmp_path / "run"), "--batch-size", "1"]
    run += ["--epochs", "5", "--timeout", "20"]
    code, text = torchrun(run, tmp_path / "output.txt", disturb, RUN_HOOKS=json.dumps(hooks))
    assert code != 0
    assert f"{said}. What came after step " in text, text
    assert "by --resume" in text
    code, resumed = torchrun([*run, "--resume"], tmp_path / "resumed.txt")
    assert code == 0, resumed
    assert "resuming after step" in resumed and "epoch 5 [3/3]" in resumed
    return text


def test_a_killed_process_ends_the_other_and_the_run_can_go_on(data, tmp_path):
    output = tmp_path / "output.txt"

    def kill(agent):
        limit = time.monotonic() + 300
        while "epoch 2 [" not in output.read_text():
            assert agent.poll() is None and time.monotonic() < limit, output.read_text()
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
