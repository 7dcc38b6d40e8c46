"""What each of two processes does that test_processes.py starts by torchrun: DDP over the emulated NCCL."""

import sys
from copy import deepcopy
from pathlib import Path

import emulated_gpu
import torch
from tiny_recipe import STAGE_CHANNELS, tiny_recipe

import frcnn.backbone
from frcnn.detector import FasterRCNN
from frcnn.engine import train as train_module
from frcnn.engine.distributed import Processes, started_processes
from frcnn.engine.step import Learner
from frcnn.structures import Batch


def batch_of(rank):
    """Two boxes in one image of the first process, none in the second's."""
    pixels = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(rank))
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]])[: 2 - 2 * rank]
    batch = Batch(pixels.byte(), ((64, 64),), (boxes,), (torch.arange(len(boxes)),))
    return batch.pin_memory().to("cuda", non_blocking=True)


def weights(parameters):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in parameters])


def alike(processes, parameters, what):
    first, second = processes.gather(weights(parameters), what)
    assert first.isfinite().all() and torch.equal(first, second), what


def main(data):
    recipe = tiny_recipe()
    with started_processes("cuda") as (processes, device):
        assert device.index == processes.rank == torch.cuda.current_device()
        torch.manual_seed(0)
        model = FasterRCNN(recipe.model, recipe.data).to(device).train()
        alone = deepcopy(model)
        learner = Learner(model, recipe.schedule, "float32", processes)
        parallel = processes.parallel(model, device)
        for step in range(2):
            torch.manual_seed(10 * step + processes.rank)
            learner.step(parallel, [batch_of(processes.rank)], 0.01)
        alike(processes, model.parameters(), "the weights after two steps")

        # the same in one process: the mean of both gradients
        optimizer = Learner(alone, recipe.schedule, "float32", Processes()).optimizer
        optimizer.param_groups[0]["lr"] = 0.01
        for step in range(2):
            optimizer.zero_grad()
            for rank in range(2):
                torch.manual_seed(10 * step + rank)
                (sum(alone(batch_of(rank)).values()) / 2).backward()
            optimizer.step()
        torch.testing.assert_close(
            weights(model.parameters()), weights(alone.parameters()), rtol=1e-5, atol=1e-6
        )

        for _ in range(10):  # torch times DDP's first ten steps and every hundredth, for which it waits
            learner.step(parallel, [batch_of(processes.rank)], 0.01)
        numbers, rows = emulated_gpu.record(lambda: learner.step(parallel, [batch_of(processes.rank)], 0.01))
        waits = [row for row in rows if row.kind == "sync"]
        assert not waits, waits
        reduced = [row for row in rows if row.kind == "nccl"]
        # every gradient once, and whether the losses are sound; the norms' statistics do not travel
        assert sum(row.bytes for row in reduced) == 4 * (len(weights(model.parameters())) + 1), reduced
        buckets = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
        assert len(buckets) == 1, "gradients lie where DDP sums them"
        assert not numbers.read()[1]

        # one process's loss is not finite where its gradients are: no process takes the step
        original = FasterRCNN.losses

        def losses(self, batch, *rest):
            values, accuracy = original(self, batch, *rest)
            return values | {
                "loss_cls": values["loss_cls"] + (float("inf") if processes.rank else 0.0)
            }, accuracy

        before = weights(model.parameters())
        FasterRCNN.losses = losses
        values, broken = learner.step(parallel, [batch_of(processes.rank)], 0.01).read()
        FasterRCNN.losses = original
        assert broken and torch.tensor(values["grad_norm"]).isfinite()
        assert torch.tensor(values["loss"]).isfinite() == processes.first
        assert torch.equal(weights(model.parameters()), before)

        trained = []
        step = Learner.step

        def noted(self, *arguments):
            trained[:] = [self]
            return step(self, *arguments)

        Learner.step = noted
        result = train_module.train(
            recipe, *data, *data, work_dir=data[1].parent / "run", workers=0, device="cuda", epochs=1
        )
        assert "bbox_mAP" in result.metrics
        alike(processes, trained[0].parameters, "the trained weights")


if __name__ == "__main__":
    frcnn.backbone.STAGE_CHANNELS = STAGE_CHANNELS
    folder = Path(sys.argv[1])
    main((folder / "annotations.json", folder / "images"))
