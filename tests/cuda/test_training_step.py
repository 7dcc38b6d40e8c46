"""A whole training step on a GPU gives the same bits every time, in float32 and under autocast.

Runs in a process of its own: cuBLAS is deterministic only if told so before it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_training_step_repeats_to_the_bit(precision):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": path}
    command = [sys.executable, __file__, "cuda", precision]
    child = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert child.returncode == 0, child.stderr[-4000:]


def steps(device: str, precision: str) -> dict[str, torch.Tensor]:
    """Two steps from a seed; every parameter afterward, and the numbers of the last step."""
    import frcnn
    from frcnn.engine.distributed import Processes
    from frcnn.engine.step import Learner
    from frcnn.structures import Batch

    torch.manual_seed(0)
    model = frcnn.build("faster_rcnn_r50_fpn_1x_coco", num_classes=5).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    corner = torch.rand(2, 9, 2) * 150
    boxes = torch.cat([corner, corner + 10 + torch.rand(2, 9, 2) * 90], dim=2)
    images = torch.randn(2, 3, 256, 320).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, ((256, 320), (250, 300)), tuple(boxes), tuple(torch.randint(0, 5, (2, 9)))).to(
        device
    )
    learner = Learner(model, frcnn.recipe("faster_rcnn_r50_fpn_1x_coco").schedule, precision, Processes())
    if learner.scale is not None:
        learner.scale.restore([16.0, 0])  # a step that is skipped would show nothing
    numbers: dict[str, float] = {}
    for _ in range(2):
        numbers, broken = learner.step(model, [batch], 1e-3).read()
        assert not broken and not numbers.get("skipped")
    return {name: torch.tensor(value) for name, value in numbers.items()} | {
        name: p.detach().clone() for name, p in model.named_parameters()
    }


def main(device: str, precision: str) -> None:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    first, second = (steps(device, precision) for _ in range(2))
    different = [name for name in first if not torch.equal(first[name], second[name])]
    if different:
        raise SystemExit(f"{len(different)} of {len(first)} differ, {different[0]} first")


if __name__ == "__main__":
    main(*sys.argv[1:])
