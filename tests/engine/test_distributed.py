"""Two processes train together on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_coco import write_tiny

from frcnn.checkpoint.run_state import read_training_state
from frcnn.engine.evaluate import evaluate
from frcnn.zoo.build import load

SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel

here, folder = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(here), str(here.parent)]
import frcnn.backbone

from tiny_recipe import STAGE_CHANNELS, tiny_recipe

frcnn.backbone.STAGE_CHANNELS = STAGE_CHANNELS
from frcnn.detector import FasterRCNN
from frcnn.engine.distributed import Processes, started_processes
from frcnn.engine.step import Learner
from frcnn.engine.train import train
from frcnn.structures import Batch

torch.set_num_threads(1)
recipe = tiny_recipe()
annotations, images = folder / "annotations.json", folder / "images"
with started_processes("cpu") as (processes, device):
    # one process has an image with a box, the other has none: both take the step and stay alike
    torch.manual_seed(0)
    model = FasterRCNN(recipe.model, recipe.data).train()
    parallel = DistributedDataParallel(model)
    boxes = torch.tensor([[4.0, 4.0, 20.0, 30.0]]) if processes.first else torch.zeros(0, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    batch = Batch(torch.randn(1, 3, 64, 64), ((64, 64),), (boxes,), (labels,))
    sum(parallel(batch).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        other = processes.gather(parameter.grad, name)
        assert torch.equal(other[0], other[1]), name
    assert processes.highest([processes.rank, 3], "the test") == [1, 3]
    del parallel  # nothing of a group may outlive it

    trained, make = [], Learner.__init__

    def keep(learner, model, *others):
        trained.append(model)
        make(learner, model, *others)

    Learner.__init__ = keep
    result = train(recipe, annotations, images, annotations, images, work_dir=folder / "run", workers=0,
                   device="cpu", val_losses=True)
    found = processes.gather({"metrics": result.metrics, "rank": processes.rank}, "the metrics")
    assert [entry["rank"] for entry in found] == [0, 1]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert len(trained) == 1
    for name, parameter in trained[0].named_parameters():
        assert torch.equal(*processes.gather(parameter.detach(), name)), name
"""


def launch(tmp_path, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "both.py"
    path.write_text(SCRIPT)
    return path


def test_two_processes_agree_and_do_not_hang(tmp_path, script):
    data = write_tiny(tmp_path / "data", images=7)
    finished = launch(tmp_path, str(script), str(Path(__file__).parent), str(tmp_path / "data"))
    assert finished.returncode == 0, finished.stderr[-3000:]

    run = tmp_path / "data" / "run"
    state = read_training_state(run / "last.pth")
    assert state["meta"]["iter"] == 4  # 7 images, 2 processes, 2 images each: 2 steps an epoch
    assert len(state["training"]["random_states"]) == 2
    assert not torch.equal(*[entry["torch"] for entry in state["training"]["random_states"]])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == ["train", "val", "train", "val"]
    # twice as many images per step as the recipe's rate is for
    assert lines[-1]["lr"] == pytest.approx(0.02 * 2 * 0.1)
    losses = evaluate(load(run / "last.pth"), *data, losses=True).losses
    assert {name: lines[-1][f"val_{name}"] for name in losses} == losses
