"""torchrun restarts a run of which a process was killed, on one host and on two, and it goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frcnn.checkpoint.run_state import read_training_state
from frcnn.checkpoint.save import checksum

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
SCRIPT = str(Path(__file__).with_name("runs.py"))


def options(epochs):
    steady = ("--workers", 0, "--epochs", epochs, "--eval-every", epochs, "--save-every", 2)
    return [*steady, "--log-every", 1, "--resume-or-start"]


def command(tiny, folder, epochs):
    words = [SCRIPT, "train", "tiny", "--train-annotations", tiny[0], "--train-images", tiny[1]]
    words += ["--val-annotations", tiny[0], "--val-images", tiny[1], "--device", "cpu"]
    return [str(word) for word in [*words, "--work-dir", folder, *options(epochs)]]


def started(words, output, slow_step=0.0):
    hooks = json.dumps({"slow_step": slow_step})
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RUN_HOOKS": hooks,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with open(output, "a") as file:
        return subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True)


def ranks_of(pid):
    """The processes below this one that train."""
    lines = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in lines.splitlines()]
    parent_of = {int(child): int(parent) for child, parent, _ in rows}

    def is_below(process):  # numbers say nothing of who came first: they start again at their limit
        while process in parent_of and process != pid:
            process = parent_of[process]
        return process == pid

    return [int(row[0]) for row in rows if f" -u {SCRIPT} " in row[2] and is_below(int(row[0]))]


def until(condition, process, output, seconds=180.0):
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert process.poll() is None and time.monotonic() < limit, output.read_text()[-3000:]
        time.sleep(0.01)
    return value


def steps_of(folder):
    """How far the log says that training has come."""
    try:
        return sum('"train"' in line for line in (folder / "log.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.stress
def test_killed_processes_are_restarted_and_the_run_ends_as_one_that_was_not(
    pair, tiny, tmp_path, stress, record_property
):
    """Either of two; nothing but the same command is run again. Each kill comes two steps after a restart."""
    kills, epochs = (10, 20) if stress else (2, 4)
    parts, output = tmp_path / "parts", tmp_path / "output.txt"
    whole = pair(*options(epochs), validate=True)
    words = [*TORCHRUN, "2", "--standalone", "--max-restarts", str(kills), "--monitor-interval", "0.1"]
    agent = started([*words, *command(tiny, parts, epochs)], output, slow_step=0.2)

    def new():
        now = ranks_of(agent.pid)
        return now if len(now) == 2 and not {*now} & {*before} else []

    rng, before = random.Random(0), []
    try:
        for _ in range(kills):
            ranks = until(new, agent, output)
            had = steps_of(parts)
            until(lambda had=had: steps_of(parts) >= had + 2, agent, output)
            os.kill(rng.choice(ranks), signal.SIGKILL)
            before = ranks
        assert agent.wait(180) == 0, output.read_text()[-3000:]
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
    assert "resuming after step" in output.read_text()
    assert [run.end(180) for run in whole] == [0, 0]
    ends = [read_training_state(folder / "last.pth") for folder in (tmp_path / "run", parts)]
    assert checksum(ends[0]) == checksum(ends[1])
    record_property("tried", f"{kills} SIGKILLs of a process of torchrun, which restarted both")


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Two network namespaces that only see each other: their names and addresses. Skipped where that is not
    permitted."""
    names = [f"frcnn{os.getpid()}{end}" for end in "ab"]
    if shutil.which("ip") is None or ip("netns", "add", names[0]).returncode:
        pytest.skip("network namespaces are not permitted here")
    try:
        ip("netns", "add", names[1])
        ends = ip("link", "add", "eth1", "netns", names[0], "type", "veth", "peer", "eth1", "netns", names[1])
        if ends.returncode:
            pytest.skip(f"no virtual network here: {ends.stderr}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "eth1")
            for device in ("lo", "eth1"):
                ip("-n", name, "link", "set", device, "up")
        yield [(name, f"10.0.0.{number}") for number, name in enumerate(names, 1)]
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_hosts_train_together_and_both_restart(hosts, tiny, tmp_path):
    """One process on each, a network between them, and one that is killed."""
    folder, outputs = tmp_path / "run", [tmp_path / "a.txt", tmp_path / "b.txt"]
    agents = []
    try:
        for (name, address), output in zip(hosts, outputs, strict=True):
            words = ["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=eth1", *TORCHRUN, "1"]
            words += ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.0.0.1:29500"]
            words += ["--rdzv-conf", f"is_host={int(name == hosts[0][0])}", "--local-addr", address]
            words += ["--max-restarts", "1", "--monitor-interval", "0.1", *command(tiny, folder, 3)]
            agents.append(started(words, output, slow_step=0.2))
        ranks = until(lambda: steps_of(folder) >= 2 and ranks_of(agents[1].pid), agents[1], outputs[1])
        os.kill(ranks[0], signal.SIGKILL)
        for agent, output in zip(agents, outputs, strict=True):
            assert agent.wait(180) == 0, output.read_text()[-3000:]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    state = read_training_state(folder / "last.pth")
    assert state["meta"]["iter"] == 6 and len(state["training"]["random_states"]) == 2
    assert "resuming after step" in "".join(output.read_text() for output in outputs)
