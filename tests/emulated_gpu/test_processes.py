"""Two processes train together, each on an emulated device of its own, over the emulated NCCL."""

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


KILLED = "another process was killed, or has failed and says why"
HANGS = "another process hangs, or needs longer than --timeout SECONDS allows"


@pytest.mark.parametrize("number, said", [(signal.SIGKILL, KILLED), (signal.SIGSTOP, HANGS)])
def test_a_process_that_dies_or_hangs_ends_the_other_and_the_run_can_go_on(data, tmp_path, number, said):
    run = [str(HERE.parent / "engine" / "runs.py"), "train", "tiny", "--device", "cuda", "--workers", "0"]
    run += ["--train-annotations", str(data / "annotations.json"), "--train-images", str(data / "images")]
    run += ["--work-dir", str(tmp_path / "run"), "--batch-size", "1"]
    run += ["--epochs", "5", "--timeout", "30"]
    slowed = {**os.environ, "RUN_HOOKS": '{"slow_step": 0.3}'}
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        agent = subprocess.Popen([*TORCHRUN, *run], env=slowed, stdout=file, stderr=file)
    limit = time.monotonic() + 300
    while "epoch 2 [" not in output.read_text():
        assert agent.poll() is None and time.monotonic() < limit, output.read_text()
        time.sleep(0.1)
    listed = subprocess.run(["ps", "--ppid", str(agent.pid), "-o", "pid="], capture_output=True, text=True)
    os.kill(max(map(int, listed.stdout.split())), number)
    # the other gives up after 30 seconds; torchrun kills what does not answer after 30 more
    assert agent.wait(150) != 0
    text = output.read_text()
    assert f"{said}. What came after step " in text, text
    assert "by --resume" in text and "[rank" not in text
    resumed = subprocess.run([*TORCHRUN, *run, "--resume"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout and "epoch 5 [3/3]" in resumed.stdout
