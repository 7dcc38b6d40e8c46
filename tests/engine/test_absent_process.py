"""What a process says of others that do not answer."""

import subprocess
import sys

import pytest
import torch.distributed as distributed

from frcnn.engine.distributed import Processes, notes_on_restarts, started_processes

# Four reductions wait at once for a process that takes no part, as a model's buffers do: the first one times
# out, which closes the connection, and the others fail with another text. One error of each kind is printed.
WAITING = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as distributed
from frcnn.engine.distributed import Processes

rank = int(sys.argv[2])
distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2, timeout=timedelta(seconds=1)
)
if rank == 1:
    time.sleep(60)
works = [distributed.all_reduce(torch.ones(4), async_op=True) for _ in range(4)]
works.append(distributed.broadcast(torch.ones(4), 0, async_op=True))
for work in works:
    try:
        with Processes.current().waiting("the sum"):
            work.wait()
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


def test_all_that_waits_for_an_absent_process_times_out(tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "store")]
    absent = subprocess.Popen([*command, "1"])
    try:
        waiting = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=60)
    finally:
        absent.kill()
        absent.wait()
    lines = [line for line in waiting.stdout.splitlines() if not line.startswith("[Gloo]")]  # of torch 2.10
    assert len(lines) >= 4, waiting
    assert all(line.startswith("TimeoutError process 0 of 2 waited in vain for the sum") for line in lines)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[/x/gloo/transport/tcp/unbound_buffer.cc:88] Timed out waiting 3000ms for recv", TimeoutError),
        ("Application timeout caused pair closure", TimeoutError),
        ("[/x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", ConnectionError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_an_error_of_the_group_is_told_from_one_of_the_model(text, kind):
    with pytest.raises(kind) as caught, Processes(0, 2).waiting("the gradients"):
        raise RuntimeError(text)
    assert type(caught.value) is kind
    assert ("the gradients" in str(caught.value)) == (kind is not RuntimeError)


def test_a_group_that_is_there_must_reach_hosts(tmp_path):
    """Ray Train makes one before training: of NCCL alone where it is not told otherwise."""
    for number, backend in enumerate(("cuda:gloo", "cpu:gloo,cuda:gloo", "gloo")):
        store = f"file://{tmp_path / str(number)}"
        distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            if backend == "cuda:gloo":
                with pytest.raises(ValueError, match="'cpu:gloo,cuda:nccl'"), started_processes("cpu"):
                    pass
            else:
                with started_processes("cpu") as (processes, _):
                    assert processes == Processes(0, 1)
            assert distributed.is_initialized()  # it belongs to who made it
        finally:
            distributed.destroy_process_group()


def test_restarts_that_share_a_store_are_warned_of():
    """Seen with torch 2.13: a second restart connected to the address of the process that was killed."""
    shared = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in notes_on_restarts(shared)[0]
    assert notes_on_restarts({**shared, "TORCHELASTIC_MAX_RESTARTS": "0"}) == []
    assert notes_on_restarts({**shared, "TORCHELASTIC_USE_AGENT_STORE": "False"}) == []
    assert notes_on_restarts({}) == []
