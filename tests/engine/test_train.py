"""Training on a tiny data set: what it writes, that it learns, and that interruptions leave no trace."""

import importlib
import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_coco import read_content, write_content

import frcnn
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import read_training_state
from frcnn.data import DatasetError
from frcnn.detector import FasterRCNN
from frcnn.engine import log, validation
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module
from frcnn.engine.interrupt import Interrupted
from frcnn.engine.not_finite import NonFiniteLoss
from frcnn.inference.hardware import cpu_computes
from frcnn.zoo.build import load

train = partial(train_module.train, device="cpu")  # exactness is promised on the CPU
LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_state(first, second):
    """Weights, buffers and momentum are bit-identical."""
    a, b = read_training_state(first), read_training_state(second)
    assert a["meta"]["iter"] == b["meta"]["iter"]
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for index, state in a["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], b["optimizer"]["state"][index]["momentum_buffer"])


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send this process a real SIGINT while it is at a given step."""

    original = run_module.learning_rate

    def arrange(step):
        def learning_rate(iteration, *rest):
            if iteration == step:
                os.kill(os.getpid(), signal.SIGINT)
            return original(iteration, *rest)

        monkeypatch.setattr(run_module, "learning_rate", learning_rate)

    return arrange


def test_training_writes_checkpoints_logs_and_metrics(recipe, tiny, tmp_path):
    result = train(recipe, *tiny, *tiny, work_dir=tmp_path / "run", workers=0, log_every=2)
    assert result.checkpoint == tmp_path / "run" / "last.pth"
    assert result.best == tmp_path / "run" / "best.pth"
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    assert result.metrics == result.history[-1] and 0 <= result.metrics["bbox_mAP"] <= 1

    lines = lines_of(tmp_path / "run")
    assert [(line["mode"], line["epoch"], line["iter"]) for line in lines] == [
        ("train", 1, 2),
        ("train", 1, 3),
        ("val", 1, 3),
        ("train", 2, 2),
        ("train", 2, 3),
        ("val", 2, 3),
    ]
    for line in lines:
        if line["mode"] == "train":
            assert {"lr", "memory", "time", "data_time", "acc", "loss", *LOSSES} < line.keys()
            assert line["loss"] == pytest.approx(sum(line[name] for name in LOSSES), rel=1e-5)
        else:
            assert {"lr", "bbox_mAP", "bbox_mAP_50"} < line.keys()
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    model = load(result.best)
    assert model.class_names == ("bar", "square") and model.config.num_classes == 2
    assert len(model.predict(tiny[1] / "0.png")) >= 0


def test_the_model_learns(recipe, tiny, tmp_path):
    """It finds the images that it has learned by heart.

    The total loss is no measure: it rises when the first proposals hit an object and the box loss begins.
    Over five seeds and three kinds of CPU the objectness loss fell from 0.69 to 0.04 to 0.10, and AP50 was
    0.56 to 0.98.
    """
    schedule = replace(recipe.schedule, epochs=30, decay_epochs=(28,), clip_grad_norm=1.0, lr=0.05)
    model = replace(recipe.model, rpn=replace(recipe.model.rpn, pos_iou=0.5))
    data = replace(recipe.data, train_short_sides=(48,), flip=0.0)
    recipe = replace(recipe, schedule=schedule, data=data, model=model)
    result = train(recipe, *tiny, *tiny, work_dir=tmp_path / "run", workers=0, eval_every=1000)
    losses = [line["loss_rpn_cls"] for line in lines_of(tmp_path / "run") if line["mode"] == "train"]
    assert losses[-1] < 0.3 * losses[0]
    assert result.metrics["bbox_mAP_50"] > 0.3


def test_images_without_boxes_teach_the_background(recipe, tiny, tmp_path):
    """Batches of such images alone too: nothing is positive, and both box losses are 0."""
    content = read_content(tiny[0])
    content["annotations"] = content["annotations"][:1]
    tiny[0].write_text(json.dumps(content))
    recipe = replace(recipe, data=replace(recipe.data, keep_empty=True))
    result = train(
        recipe, *tiny, *tiny, work_dir=tmp_path / "run", workers=0, batch_size=1, log_every=1, val_losses=True
    )
    lines = [line for line in lines_of(result.work_dir) if line["mode"] == "train"]
    assert len(lines) == 6 * recipe.schedule.epochs  # of them five in six show no object
    without = [line for line in lines if line["loss_rpn_bbox"] == 0]
    assert len(without) >= 5 * recipe.schedule.epochs
    assert all(line["loss_bbox"] == 0 and 0 < line["loss"] < 10 for line in without)


@pytest.mark.parametrize("step", [0, 4, 5])
def test_a_resumed_run_ends_bit_identical(longer, tiny, tmp_path, interrupt_at, step):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(longer, *tiny, *tiny, work_dir=whole, workers=0, eval_every=2, log_every=1)

    interrupt_at(step)
    with pytest.raises(Interrupted, match=rf"stopped after step {step + 1} of 12.*last\.pth"):
        train(longer, *tiny, *tiny, work_dir=parts, workers=0, eval_every=2, log_every=1)
    assert read_training_state(parts / "last.pth")["meta"]["iter"] == step + 1
    torch.rand(7)  # whatever happens between
    interrupt_at(-1)
    result = train(longer, *tiny, *tiny, work_dir=parts, workers=2, eval_every=2, log_every=1, resume=True)

    assert_same_state(whole / "last.pth", parts / "last.pth")
    assert [entry["epoch"] for entry in result.history] == [2, 4]
    first, second = lines_of(whole), lines_of(parts)
    keys = ("mode", "epoch", "iter", "lr", *LOSSES)
    assert [[line.get(k) for k in keys] for line in first] == [[line.get(k) for k in keys] for line in second]


def test_steps_after_the_last_checkpoint_are_repeated(longer, tiny, tmp_path, monkeypatch):
    """A crash loses the steps since the checkpoint; the log of the repeated run has each step once."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(longer, *tiny, work_dir=whole, workers=0, log_every=1)

    original = run_module.learning_rate

    def crash(iteration, *rest):
        if iteration == 8:
            raise RuntimeError("power cut")
        return original(iteration, *rest)

    monkeypatch.setattr(run_module, "learning_rate", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(longer, *tiny, work_dir=parts, workers=0, log_every=1, save_every=4)
    monkeypatch.setattr(run_module, "learning_rate", original)
    train(longer, *tiny, work_dir=parts, workers=0, log_every=1, resume=True)
    assert_same_state(whole / "last.pth", parts / "last.pth")
    assert [(line["epoch"], line["iter"]) for line in lines_of(parts)] == [
        (epoch, step) for epoch in (1, 2, 3, 4) for step in (1, 2, 3)
    ]


def test_a_finished_run_resumes_to_the_same_result(recipe, tiny, tmp_path):
    first = train(recipe, *tiny, *tiny, work_dir=tmp_path / "run", workers=0)
    again = train(recipe, *tiny, *tiny, work_dir=tmp_path / "run", workers=0, resume=True)
    assert again.history == first.history


def test_a_run_is_not_overwritten(recipe, tiny, tmp_path):
    train(recipe, *tiny, work_dir=tmp_path / "run", workers=0)
    before = (tmp_path / "run" / "last.pth").read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.pth exists: go on with that run by resume=True"):
        train(recipe, *tiny, work_dir=tmp_path / "run", workers=0)
    assert (tmp_path / "run" / "last.pth").read_bytes() == before


def test_resuming_with_other_settings_names_them(recipe, tiny, tmp_path):
    train(recipe, *tiny, work_dir=tmp_path / "run", workers=0)
    other = replace(recipe, schedule=replace(recipe.schedule, lr=0.5))
    with pytest.raises(CheckpointError, match=r"schedule\.lr=0\.02, now schedule\.lr=0\.5"):
        train(other, *tiny, work_dir=tmp_path / "run", workers=0, resume=True)
    with pytest.raises(CheckpointError, match="seed=0, now seed=1"):
        train(recipe, *tiny, work_dir=tmp_path / "run", workers=0, resume=True, seed=1)


def test_nothing_to_resume_is_an_error(recipe, tiny, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(recipe, *tiny, work_dir=tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(recipe, tiny, tmp_path, monkeypatch):
    original = FasterRCNN.losses
    calls = []

    def losses(self, batch):
        calls.append(batch)
        values, accuracy = original(self, batch)
        if len(calls) == 5:
            values["loss_cls"] = values["loss_cls"] * float("nan")
        return values, accuracy

    monkeypatch.setattr(FasterRCNN, "losses", losses)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLoss, match=r"step 4: loss_cls, loss, grad_norm not finite.*\.png"):
        train(recipe, *tiny, work_dir=run, workers=0)
    state = read_training_state(run / "last.pth")
    assert state["meta"]["iter"] == 3
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())

    evidence = json.loads((run / "not_finite.json").read_text())
    assert evidence["iteration"] == 4 and evidence["values"]["loss_cls"] == "nan"
    assert "roi_head.bbox_head.fc_cls.weight" in evidence["parameters_with_bad_gradients"]
    assert [image["boxes"] for image in evidence["images"]] == [boxes.tolist() for boxes in calls[-1].boxes]


def test_an_interrupted_evaluation_is_made_up_for(recipe, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    original = validation.evaluate

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr(validation, "evaluate", interrupted)
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train(recipe, *tiny, *tiny, work_dir=run, workers=0)
    monkeypatch.setattr(validation, "evaluate", original)
    result = train(recipe, *tiny, *tiny, work_dir=run, workers=0, resume=True)
    assert [entry["epoch"] for entry in result.history] == [1, 2]


def test_signals_are_given_back(recipe, tiny, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(replace(recipe, schedule=replace(recipe.schedule, epochs=1)), *tiny, work_dir=tmp_path, workers=0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_starts_from_given_weights(recipe, tiny, tmp_path):
    first = train(recipe, *tiny, work_dir=tmp_path / "first", workers=0)
    still = replace(recipe, schedule=replace(recipe.schedule, epochs=1, lr=0.0))
    second = train(still, *tiny, work_dir=tmp_path / "second", workers=0, weights=first.checkpoint)
    a, b = (torch.load(path)["state_dict"] for path in (first.checkpoint, second.checkpoint))
    for name in a:
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(a[name], b[name]), name


def test_validation_classes_must_be_those_of_training(recipe, tiny, tmp_path):
    content = read_content(tiny[0])
    content["categories"][0]["name"] = "circle"
    other = write_content(tmp_path, content)
    with pytest.raises(DatasetError, match=r"only in the data set: +circle"):
        train(recipe, *tiny, other, tiny[1], work_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="val_annotations and val_images belong together"):
        train(recipe, *tiny, tiny[0], work_dir=tmp_path / "run")


@pytest.mark.skipif(not cpu_computes("bfloat16"), reason="this CPU has no bfloat16 arithmetic")
def test_bfloat16_trains(recipe, tiny, tmp_path):
    train(recipe, *tiny, work_dir=tmp_path, workers=0, precision="bfloat16")
    state = read_training_state(tmp_path / "last.pth")
    assert all(value.dtype != torch.bfloat16 for value in state["state_dict"].values())


def test_recipes_can_be_named(monkeypatch, tiny, tmp_path):
    built = []
    monkeypatch.setattr(run_module, "build", lambda recipe, **rest: built.append(recipe) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        frcnn.train("small_r18_fpn", *tiny, work_dir=tmp_path / "run", epochs=6, batch_size=3)
    assert built[0].name == "small_r18_fpn" and built[0].model.num_classes == 2
    assert built[0].schedule.epochs == 6 and built[0].schedule.images_per_process == 3


def test_the_log_does_without_the_module_that_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    module = importlib.reload(log)
    assert module.memory_mb(torch.device("cpu")) == 0
    monkeypatch.undo()
    importlib.reload(log)
