"""SIGINT and SIGTERM, to whomever: the step is finished and saved; a second one ends at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import Run

from frcnn.checkpoint.run_state import read_training_state

BOTH = [signal.SIGINT, signal.SIGTERM]


def steps_in(folder):
    return read_training_state(folder / "last.pth")["meta"]["iter"]


def children_of(pid):
    lines = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True).stdout
    return [int(line) for line in lines.split()]


def gone(pids, seconds=20.0):
    """Whether these processes end in that time (zombies that nobody waits for count as ended)."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        states = subprocess.run(
            ["ps", "-o", "stat=", *(f"-p{pid}" for pid in pids)], capture_output=True, text=True
        ).stdout.split()
        if all(state.startswith("Z") for state in states):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", BOTH)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(start, tmp_path, number, group):
    """With loader workers, which the group's signal reaches too."""
    run = start("run", "--epochs", 20, slow_step=0.1)
    run.wait_for_text("epoch 1 [")
    run.signal(number, group)
    run.signal(number, group)  # as torchrun and a scheduler do together
    assert run.end() == 128 + number
    text = run.text()
    assert f"stopped after step {steps_in(tmp_path / 'run')} of 60" in text
    assert f"continue with: frcnn train tiny --train-annotations {tmp_path}" in text and "--resume" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", BOTH)
def test_a_second_signal_ends_at_once_even_out_of_native_code(start, number):
    run = start("run", "--epochs", 20, stuck_at=4)
    run.wait_for_text("stuck")
    workers = children_of(run.pid)
    assert len(workers) == 2
    run.signal(number, group=True)
    time.sleep(0.5)
    assert run.process.is_alive()
    run.signal(BOTH[number == signal.SIGINT], group=True)
    assert run.end() == 128 + BOTH[number == signal.SIGINT]
    assert gone(workers)
    assert "ended without saving" in run.text() and "Traceback" not in run.text()


def test_the_same_signal_after_two_seconds_is_a_second_one(start):
    run = start("run", "--epochs", 20, stuck_at=4)
    run.wait_for_text("stuck")
    run.signal(signal.SIGTERM)
    time.sleep(2.2)
    assert run.process.is_alive()
    run.signal(signal.SIGTERM)
    assert run.end() == 143 and "Traceback" not in run.text()


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_at_the_start_ends_without_a_step(start, tmp_path, number):
    run = start("run", slow_start=30)
    run.wait_for_text("starting")
    run.signal(number)
    assert run.end(20) == 128 + number
    assert run.text() == "starting\nstopped before the first step of this run\n"
    assert not (tmp_path / "run").exists()


def test_workers_end_with_a_killed_parent(start):
    run = start("run", "--epochs", 100, slow_step=0.1)
    run.wait_for_text("epoch 1 [")
    workers = children_of(run.pid)
    assert len(workers) == 2
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    assert gone(workers)


def test_workers_take_no_notice_of_signals(start, tmp_path):
    run = start("run", "--epochs", 4, slow_step=0.1)
    run.wait_for_text("epoch 1 [")
    for worker in children_of(run.pid):
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert run.end() == 0, run.text()
    assert steps_in(tmp_path / "run") == 12


def test_the_death_of_a_worker_is_one_message(start):
    run = start("run", "--epochs", 100, slow_step=0.1)
    run.wait_for_text("epoch 1 [")
    os.kill(children_of(run.pid)[0], signal.SIGKILL)
    assert run.end() == 1
    assert "DataLoader worker (pid" in run.text() and "take fewer workers" in run.text()
    assert "Traceback" not in run.text()


def test_sigterm_to_torchrun_saves_and_says_how_to_go_on(tiny, tmp_path):
    """And to every process of it at the same time, as a scheduler does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("runs.py")), "train", "tiny"]
    command += ["--train-annotations", str(tiny[0]), "--train-images", str(tiny[1]), "--epochs", "50"]
    command += ["--work-dir", str(tmp_path / "run"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUN_HOOKS": '{"slow_step": 0.1}'}
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        agent = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    limit = time.monotonic() + 120
    while "epoch 1 [" not in output.read_text():
        assert agent.poll() is None and time.monotonic() < limit, output.read_text()
        time.sleep(0.05)
    ranks = children_of(agent.pid)
    workers = [worker for rank in ranks for worker in children_of(rank)]
    assert len(ranks) == 2 and len(workers) == 4
    for pid in (agent.pid, *ranks, *workers):
        os.kill(pid, signal.SIGTERM)
    assert agent.wait(60) != 0
    text = output.read_text()
    assert gone([*ranks, *workers]), text
    assert f"stopped after step {steps_in(tmp_path / 'run')} of 100" in text
    assert text.count("continue with: torchrun --nproc-per-node 2 -m frcnn train tiny") == 1
    assert "Grad strides do not match bucket view strides" not in text and "warning:" not in text
    assert "[rank" not in text  # torch's mark on a rank's traceback; the last one is torchrun's own


def end_of(run: Run, seconds=30):
    code = run.end(seconds)
    assert "Traceback" not in run.text()
    return code, run.text().splitlines()[-1]


def test_a_stopped_process_ends_the_others_in_time(pair):
    first, second = pair("--epochs", 100, "--workers", 0, "--timeout", 3, slow_step=0.05)
    first.wait_for_text("epoch 1 [")
    second.signal(signal.SIGSTOP)
    code, message = end_of(first)
    assert code == 1
    assert "process 0 of 2 waited in vain for the " in message
    second.signal(signal.SIGCONT)
    assert end_of(second)[0] == 1


@pytest.mark.parametrize("saved", [False, True])
def test_a_killed_process_ends_the_others(pair, tmp_path, saved):
    """As torchrun then does, the others are asked to stop, which they say; it is not what happens."""
    first, second = pair("--epochs", 100, "--workers", 0, "--log-every", 1, hooks=({}, {}), slow_step=0.1)
    first.wait_for_text("epoch 2 [" if saved else "epoch 1 [1/")
    second.signal(signal.SIGKILL)
    first.signal(signal.SIGTERM)
    code, message = end_of(first)
    assert code == 1
    assert message.startswith("frcnn: process 0 of 2 cannot get the ")
    assert "another process was killed, or has failed and says why. " in message
    assert "gloo" not in message and ".cc" not in message
    if saved:
        steps = steps_in(tmp_path / "run")
        assert f"What came after step {steps} is not saved: go on from {tmp_path / 'run'}" in message
        assert message.endswith("last.pth by --resume")
    else:
        assert message.endswith("Nothing has been saved yet: start again")


def test_an_absent_process_ends_the_start_in_time(pair):
    first, second = pair("--timeout", 3, hooks=({}, {"slow_start": 30}))
    code, message = end_of(first)
    assert code == 1 and "process 0 of 2 waited in vain for the same model" in message
    assert second.process.is_alive()


def test_an_error_in_one_process_ends_the_others(pair):
    first, second = pair("--epochs", 100, hooks=({}, {"fail_at": 4}), slow_step=0.05)
    code, message = end_of(second)
    assert code == 1 and message == "frcnn: made to fail"
    code, message = end_of(first)
    assert code == 1 and "another process was killed, or has failed and says why" in message


def test_a_signal_to_one_process_stops_all(pair, tmp_path):
    first, second = pair("--epochs", 100, validate=True, slow_step=0.05)
    first.wait_for_text("epoch 2 [")
    second.signal(signal.SIGTERM)
    assert first.end() == second.end() == 143
    assert f"stopped after step {steps_in(tmp_path / 'run')} of 200" in first.text()
    assert "Traceback" not in first.text() + second.text()
