"""One training step, from a batch to new weights; nothing in it waits for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from frcnn.config import ScheduleConfig
from frcnn.detector import FasterRCNN
from frcnn.engine.distributed import Processes
from frcnn.engine.loss_scale import LossScale
from frcnn.inference.hardware import DTYPES, Precision, float32_arithmetic
from frcnn.structures import Batch, Download


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of a step, on their way from its device to the host.

    names: the losses, acc, their sum loss, and grad_norm, the gradients' norm before it was clipped; in
    float16 also the step's loss_scale, and skipped, 1 or 0.
    """

    names: tuple[str, ...]
    values: Download
    """One more than names: whether training is broken."""
    gradient_norms: Tensor
    """Of every parameter that has a gradient; stays on the device."""

    def read(self) -> tuple[dict[str, float], bool]:
        """By name, and whether training is broken: see `Learner`. Waits until they are there."""
        *values, broken = self.values.wait()[0].tolist()
        return dict(zip(self.names, values, strict=True)), bool(broken)


class WeightAverage:
    """A copy of a model whose weights are their running averages, by torch's rule, from what they are now on.

    torch's AveragedModel asks the device for its number of steps, which a host would wait for.
    """

    def __init__(self, model: FasterRCNN, decay: float):
        self.model = deepcopy(model)
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After a step of the model."""
        self._update([*self.model.parameters()], [*model.parameters()], None)
        torch._foreach_copy_([*self.model.buffers()], [*model.buffers()])


Forward = Callable[[], tuple[dict[str, Tensor], Tensor]]
"""The losses of a batch, and the accuracy."""


class Learner:
    """The recipe's optimizer on whatever is not frozen.

    A step that has a loss or a gradient which is NaN or infinite, in any process, breaks training: neither
    that step nor a later one changes weights or momentum. What says so is a flag on the device, so the host
    can issue steps without knowing how the last ones went. In float16 such a step is skipped and the loss
    scaled down; it breaks training only where the scale is down to 1.

    precision: what convolutions and matrix products are computed in. Weights, gradients and momentum are
    float32 always. average: the model with the running averages of its weights, where the schedule has `ema`.
    """

    def __init__(
        self, model: FasterRCNN, schedule: ScheduleConfig, precision: Precision, processes: Processes
    ):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.parameters, schedule)
        for parameter in self.parameters:
            _keep_layout(parameter)
        self.average = WeightAverage(model, schedule.ema) if schedule.ema else None
        self.clip_grad_norm = schedule.clip_grad_norm
        self.precision = precision
        self.processes = processes
        device = self.parameters[0].device
        self.scale = LossScale(device) if precision == "float16" else None
        self.broken = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self.names: tuple[str, ...] = ()

    def step(
        self, model: nn.Module, batches: Sequence[Batch], lr: float, weight: float | None = None
    ) -> Numbers:
        """Learn from the mean gradient of batches on the model's device with this rate.

        model: the one to learn, or what computes the mean gradients of all processes with it. weight: what
        each batch's loss is multiplied by; by default all count alike and as much as those of others.
        """

        def forward(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
            with _exchanging(model, batch is batches[-1]):
                return model(batch, with_accuracy=True)

        return self.numbers(*self.learn([partial(forward, batch) for batch in batches], lr, weight))

    def numbers(self, values: Tensor, norms: Tensor) -> Numbers:
        """What `learn` returned, on its way to the host."""
        return Numbers(self.names, Download(values), norms)

    def learn(
        self, forwards: Sequence[Forward], lr: float | Tensor, weight: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Learn from what they return, each times the weight; from their mean, where there is none.

        Returns the values that `numbers` names, and the gradients' norms. What outlives a step is written in
        place, so that a step can be captured.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        device, dtype = self.broken.device, DTYPES[self.precision]
        weight = 1 / len(forwards) if weight is None else weight
        self.optimizer.zero_grad(set_to_none=True)
        seen: list[dict[str, Tensor]] = []
        with float32_arithmetic(self.precision, device):
            for forward in forwards:
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    losses, accuracy = forward()
                loss = torch.stack([*losses.values()]).sum()
                part = loss if weight == 1 else loss * weight
                (part if self.scale is None else part * self.scale.value).backward()
                seen.append({**losses, "acc": accuracy, "loss": loss.detach()})
        norms = torch.stack(torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None]))
        norm = torch.linalg.vector_norm(norms)
        if self.scale is not None:
            norm = norm / self.scale.value
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)

        watched = seen[0]
        if len(seen) > 1:
            watched = {name: torch.stack([each[name].detach() for each in seen]).mean() for name in watched}
        watched = {**watched, "grad_norm": norm}
        numbers = torch.stack([value.detach().float() for value in watched.values()])
        # gradients are the same in all processes, losses are not
        # without a loss scale one such step breaks training for good: there is one flag for both
        unsound = self.broken if self.scale is None else torch.zeros_like(self.broken)
        torch._amp_foreach_non_finite_check_and_unscale_([numbers], unsound, self._one)  # divides by 1
        self.processes.highest_on_device(unsound, "the losses")
        self._take(unsound)
        if self.scale is not None:
            watched |= {"loss_scale": self.scale.value, "skipped": unsound}
            numbers = torch.cat([numbers, torch.stack([self.scale.value, unsound])])
            self.scale.update(unsound > 0)
        self.names = tuple(watched)
        return torch.cat([numbers, self.broken[None]]), norms

    def _take(self, unsound: Tensor) -> None:
        """Let the optimizer step unless this step is unsound (1, not 0) or training is broken."""
        # what torch's GradScaler gives a fused optimizer, which divides the gradients by the scale
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]
        if self.scale is not None:
            torch.maximum(self.broken, unsound * (self.scale.value <= 1), out=self.broken)
            self.optimizer.found_inf = torch.maximum(self.broken, unsound)  # type: ignore[attr-defined]
            self.optimizer.grad_scale = self.scale.value  # type: ignore[attr-defined]
        self.optimizer.step()


def _optimizer(parameters: list[nn.Parameter], schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """With all its state: torch would make it in the first step, which the flag may forbid, and leave it as
    memory was."""
    # fused: one kernel, which looks at the flag
    common: dict[str, Any] = {"lr": schedule.lr, "weight_decay": schedule.weight_decay, "fused": True}
    if schedule.optimizer == "sgd":
        sgd = torch.optim.SGD(parameters, momentum=schedule.momentum, **common)
        sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
        return sgd
    adamw = torch.optim.AdamW(parameters, betas=(schedule.momentum, 0.999), **common)
    for p in parameters:
        averages = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        adamw.state[p] = {"step": torch.zeros((), device=p.device), **averages}
    return adamw


@contextmanager
def _exchanging(model: nn.Module, exchanges: bool) -> Iterator[None]:
    """Whether processes, where there are several, exchange the gradients of what is computed meanwhile."""
    if exchanges or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def _keep_layout(parameter: nn.Parameter) -> None:
    """Give its gradients its own strides, which the fused optimizer and DDP's buckets ask for.

    autograd sees to that only in dimensions larger than 1, and a 1x1 kernel has two of size 1.
    """
    strides = parameter.stride()

    def in_layout(gradient: Tensor) -> Tensor:
        if gradient.stride() == strides:
            return gradient
        pairs = zip(gradient.shape, gradient.stride(), strides, strict=True)
        if all(size == 1 or own == wanted for size, own, wanted in pairs):
            return gradient.as_strided(gradient.shape, strides)  # as it lies in memory
        same = torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device)
        return same.copy_(gradient)

    parameter.register_hook(in_layout)
