"""The optimizer, and one step up to its gradients: forward, backward, clipping, the numbers to look at."""

from __future__ import annotations

import torch
from torch import nn

from frcnn.config import ScheduleConfig
from frcnn.structures import Batch


def sgd(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.SGD:
    """The optimizer of whatever is not frozen."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(
        trainable, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    lr: float,
    bfloat16: bool,
    clip_grad_norm: float | None,
) -> dict[str, float]:
    """Leave the gradients of a batch in the parameters; `optimizer.step()` then learns with this rate.

    bfloat16: convolutions and matrix products are computed in it.
    Returns the losses, acc, their sum loss, and grad_norm, the gradients' norm before it was clipped.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    device = batch.images.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        losses, accuracy = model(batch, with_accuracy=True)
    loss = sum(losses.values())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    # One transfer for everything that is looked at: each would wait for the device on its own.
    watched = {**losses, "acc": accuracy, "loss": loss, "grad_norm": norm}
    numbers = torch.stack([torch.as_tensor(v, device=device).detach().float() for v in watched.values()])
    return dict(zip(watched, numbers.tolist(), strict=True))
