"""A training step by itself: what it leaves, and what it does not touch."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from frcnn.detector import FasterRCNN
from frcnn.engine.distributed import Processes
from frcnn.engine.loss_scale import START, LossScale
from frcnn.engine.step import Learner
from frcnn.structures import Batch

SCALE = 1024.0


def batch_of(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]])
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    return Batch(pixels, ((64, 64),), (boxes,), (torch.tensor([0, 1]),)).to(device)


@pytest.fixture
def learner(model, recipe):
    return Learner(model.train(), recipe.schedule, "float32", Processes())


def state_of(learner):
    momentum = [learner.optimizer.state[p]["momentum_buffer"] for p in learner.parameters]
    return [tensor.detach().clone() for tensor in [*learner.parameters, *momentum]]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def spoilt(monkeypatch, name, factor):
    """A loss is multiplied."""
    original = FasterRCNN.losses

    def losses(self, batch, *rest):
        values, accuracy = original(self, batch, *rest)
        return values | {name: values[name] * factor}, accuracy

    monkeypatch.setattr(FasterRCNN, "losses", losses)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_does_a_later_one(
    learner, model, monkeypatch, factor
):
    values, broken = learner.step(model, [batch_of()], 0.01).read()
    assert not broken and all(map(torch.isfinite, map(torch.tensor, values.values())))
    before = state_of(learner)
    with monkeypatch.context() as patch:
        spoilt(patch, "loss_cls", factor)
        numbers = learner.step(model, [batch_of()], 0.01)
    values, broken = numbers.read()
    assert broken and not torch.tensor(values["loss_cls"]).isfinite()
    assert not numbers.gradient_norms.isfinite().all()
    assert same(state_of(learner), before)
    values, broken = learner.step(model, [batch_of()], 0.01).read()
    assert broken and all(map(torch.isfinite, map(torch.tensor, values.values())))
    assert same(state_of(learner), before)


def test_a_gradient_alone_that_is_not_finite_breaks_training_too(learner, model):
    before = state_of(learner)
    weight = model.roi_head.bbox_head.fc_cls.weight
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    numbers = learner.step(model, [batch_of()], 0.01)
    hook.remove()
    values, broken = numbers.read()
    assert broken and torch.tensor(values["loss"]).isfinite()
    bad = [p for p, norm in zip(learner.parameters, numbers.gradient_norms, strict=True) if norm.isnan()]
    assert len(bad) == 1 and bad[0] is weight
    assert same(state_of(learner), before)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_it_is_torchs_sgd(model, recipe, clip):
    """With the momentum that the first step makes, decay, and clipping to a norm."""
    plain = deepcopy(model).train()
    schedule = replace(recipe.schedule, clip_grad_norm=clip)
    learner = Learner(model.train(), schedule, "float32", Processes())
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=0.1, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    for lr in (0.01, 0.02, 0.02):
        torch.manual_seed(1)
        learner.step(model, [batch_of()], lr)
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
    learner.step(model, [batch_of()], 0.01)
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


def test_the_loss_scale_is_torchs(monkeypatch):
    """GradScaler's, over a row of steps of which some overflow."""
    monkeypatch.setattr("frcnn.engine.loss_scale.STEPS_TO_DOUBLE", 3)
    ours = LossScale(torch.device("cpu"))
    theirs = torch.amp.GradScaler("cpu", init_scale=START, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    row = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    seen = []
    for overflows in row:
        weight.grad = theirs.scale(torch.tensor([float("inf") if overflows else 1.0]))
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(bool(overflows)))
        assert ours.state() == [theirs.get_scale(), theirs.state_dict()["_growth_tracker"]]
        seen.append(ours.value.item())
    assert seen != sorted(seen, reverse=True) and min(seen) < START  # it has gone down and up


@pytest.fixture
def half(model, recipe):
    learner = Learner(model.train(), recipe.schedule, "float16", Processes())
    learner.scale.restore([SCALE, 0])  # which these weights and this batch bear
    return learner


def test_float16_learns_what_float32_learns(half, model, recipe):
    """The gradients are unscaled before they are measured, clipped and applied."""
    # all candidates are sampled: a few of them would be others where rounding changes one proposal
    model.roi_head.config = replace(model.roi_head.config, samples=10_000, pos_fraction=1.0)
    plain = deepcopy(model)
    full = Learner(plain, recipe.schedule, "float32", Processes())
    torch.manual_seed(1)
    values, broken = half.step(model, [batch_of()], 0.01).read()
    torch.manual_seed(1)
    wanted, _ = full.step(plain, [batch_of()], 0.01).read()
    assert not broken and values["loss_scale"] == SCALE and values["skipped"] == 0
    assert values["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.02)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=1e-3, atol=1e-3)
    momentum = [state_of(learner)[len(learner.parameters) :] for learner in (half, full)]
    moved, wanted_move = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in momentum)
    assert torch.nn.functional.cosine_similarity(moved, wanted_move, dim=0) > 0.9
    assert moved.norm().item() == pytest.approx(wanted_move.norm().item(), rel=0.02)


def test_float16_skips_a_step_that_overflows_and_halves_the_scale(half, model):
    half.step(model, [batch_of()], 0.01)
    before = state_of(half)
    hook = model.roi_head.bbox_head.fc_cls.weight.register_hook(lambda gradient: gradient * float("inf"))
    values, broken = half.step(model, [batch_of()], 0.01).read()
    assert not broken and values["skipped"] == 1 and not torch.tensor(values["grad_norm"]).isfinite()
    assert same(state_of(half), before) and half.scale.state() == [SCALE / 2, 0]
    hook.remove()
    values, broken = half.step(model, [batch_of()], 0.01).read()
    assert not broken and values["skipped"] == 0 and values["loss_scale"] == SCALE / 2
    assert not same(state_of(half), before)


def test_float16_is_broken_where_no_scale_helps(half, model, monkeypatch):
    spoilt(monkeypatch, "loss_bbox", float("nan"))
    before = state_of(half)
    results = [half.step(model, [batch_of()], 0.01).read() for _ in range(11)]
    assert [broken for _, broken in results] == [False] * 10 + [True]
    assert results[-1][0]["loss_scale"] == 1 and same(state_of(half), before)
