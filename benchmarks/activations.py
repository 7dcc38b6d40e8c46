"""Bytes that a training step keeps for its backward pass.

    python benchmarks/activations.py [--size 800 1344]

Counted by saved-tensor hooks, so the figures are the same on every machine and device.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

import frcnn
from frcnn.detector import FasterRCNN
from frcnn.structures import Batch

BOXES_PER_IMAGE = 7
"""COCO's mean."""


def kept_for_backward(model: FasterRCNN, batch: Batch, bfloat16: bool = False) -> int:
    """Bytes of the distinct storages that one forward pass keeps, the parameters aside.

    bfloat16: under autocast.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # the losses are held until the sum is taken, so that no storage is freed and its address counted twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
            losses = model(batch)
    total = sum(kept.values())
    del losses
    return total


def random_batch(images: int, height: int, width: int) -> Batch:
    """Noise with annotated boxes of many sizes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, height, width, generator=generator)
    size = torch.tensor([width, height])
    corners = torch.rand(images, BOXES_PER_IMAGE, 2, generator=generator) * 0.6 * size
    sides = torch.rand(images, BOXES_PER_IMAGE, 2, generator=generator) * 0.3 * size + 10
    return Batch(
        pixels.contiguous(memory_format=torch.channels_last),
        ((height, width),) * images,
        tuple(torch.cat([corners, corners + sides], 2)),
        (torch.arange(BOXES_PER_IMAGE),) * images,
    )


def main(recipe: str = "faster_rcnn_r50_fpn_1x_coco", images: int = 2, size: tuple[int, int] = (800, 1344)):
    """Print what a step of a recipe keeps.

    Args:
        recipe: One of the zoo.
        images: Images of the batch.
        size: Height and width of the padded batch.
    """
    entry = frcnn.recipe(recipe)
    batch = random_batch(images, *size)
    print(f"{recipe}, {images} images of {size[0]}x{size[1]}: GB kept for the backward pass")
    for recompute in (False, True):
        backbone = replace(entry.model.backbone, recompute=recompute)
        model = frcnn.build(replace(entry, model=replace(entry.model, backbone=backbone))).train()
        kept = [kept_for_backward(model, batch, bfloat16) / 1e9 for bfloat16 in (False, True)]
        blocks = "recomputed" if recompute else "kept"
        print(f"residual blocks {blocks:<11} float32 {kept[0]:.2f}   bfloat16 autocast {kept[1]:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
