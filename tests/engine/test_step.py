"""A training step by itself: what it leaves, and what it does not touch."""

import pytest
import torch

from frcnn.detector import FasterRCNN
from frcnn.engine.distributed import Processes
from frcnn.engine.step import Learner
from frcnn.structures import Batch


def batch_of(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]])
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    return Batch(pixels, ((64, 64),), (boxes,), (torch.tensor([0, 1]),)).to(device)


@pytest.fixture
def learner(model, recipe):
    return Learner(model.train(), recipe.schedule, False, Processes())


def state_of(learner):
    momentum = [learner.optimizer.state[p]["momentum_buffer"] for p in learner.parameters]
    return [tensor.detach().clone() for tensor in [*learner.parameters, *momentum]]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def spoilt(monkeypatch, name, factor):
    """One loss is multiplied, or with `name` None every gradient of a layer."""
    original = FasterRCNN.losses

    def losses(self, batch, *rest):
        values, accuracy = original(self, batch, *rest)
        return values | {name: values[name] * factor}, accuracy

    monkeypatch.setattr(FasterRCNN, "losses", losses)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_does_a_later_one(
    learner, model, monkeypatch, factor
):
    values, broken = learner.step(model, batch_of(), 0.01).read()
    assert not broken and all(map(torch.isfinite, map(torch.tensor, values.values())))
    before = state_of(learner)
    with monkeypatch.context() as patch:
        spoilt(patch, "loss_cls", factor)
        numbers = learner.step(model, batch_of(), 0.01)
    values, broken = numbers.read()
    assert broken and not torch.tensor(values["loss_cls"]).isfinite()
    assert not numbers.gradient_norms.isfinite().all()
    assert same(state_of(learner), before)
    values, broken = learner.step(model, batch_of(), 0.01).read()
    assert broken and all(map(torch.isfinite, map(torch.tensor, values.values())))
    assert same(state_of(learner), before)


def test_a_gradient_alone_that_is_not_finite_breaks_training_too(learner, model):
    before = state_of(learner)
    weight = model.roi_head.bbox_head.fc_cls.weight
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    numbers = learner.step(model, batch_of(), 0.01)
    hook.remove()
    values, broken = numbers.read()
    assert broken and torch.tensor(values["loss"]).isfinite()
    bad = [p for p, norm in zip(learner.parameters, numbers.gradient_norms, strict=True) if norm.isnan()]
    assert len(bad) == 1 and bad[0] is weight
    assert same(state_of(learner), before)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_it_is_torchs_sgd(model, recipe, clip):
    """With the momentum that the first step makes, decay, and clipping to a norm."""
    from copy import deepcopy
    from dataclasses import replace

    plain = deepcopy(model).train()
    schedule = replace(recipe.schedule, clip_grad_norm=clip)
    learner = Learner(model.train(), schedule, False, Processes())
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=0.1, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    for lr in (0.01, 0.02, 0.02):
        torch.manual_seed(1)
        learner.step(model, batch_of(), lr)
        torch.manual_seed(1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        sum(plain(batch_of()).values()).backward()
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
            assert norm > clip
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_gradients_are_laid_out_as_their_parameters(learner, model):
    """In dimensions of size 1 too, which 1x1 kernels have."""
    learner.step(model, batch_of(), 0.01)
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
