"""Training on the emulated device: the host gives it steps and waits for none; a bad one is found late."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulated_gpu import record
from noise_batch import noise_batch
from small_recipe import small
from tiny_coco import write_tiny
from tiny_recipe import STAGE_CHANNELS, tiny_recipe

from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import read_training_state
from frcnn.cli import main
from frcnn.config import RPNConfig
from frcnn.detector import FasterRCNN
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module
from frcnn.engine.distributed import Processes
from frcnn.engine.not_finite import NonFiniteLoss
from frcnn.engine.step import Learner
from frcnn.engine.step_graph import StepGraphs
from frcnn.inference.shapes import few_shapes, smallest_holding
from frcnn.rpn import RPNHead
from frcnn.zoo.recipes import recipe

DEVICE = torch.device("cuda")
LAUNCHES = {"float32": 180, "bfloat16": 190, "float16": 210}
"""The most that a step may launch and copy beside convolutions and matrix products."""


@pytest.fixture(scope="module")
def entry():
    """Few boxes: what a step asks of the device is the same, and the emulator takes less time."""
    made = small(recipe("faster_rcnn_r50_fpn_1x_coco"))
    rpn = replace(made.model.rpn, pre_nms_train=100, post_nms_train=100, samples=64)
    return replace(
        made, model=replace(made.model, rpn=rpn, roi_head=replace(made.model.roi_head, samples=64))
    )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Annotation file and image folder, for the tiny recipe."""
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", STAGE_CHANNELS)
    return write_tiny(tmp_path / "tiny")


def batch_of():
    return noise_batch(((96, 128), (80, 100)), 60).pin_memory().to(DEVICE, non_blocking=True)


@pytest.mark.parametrize(("precision", "clip"), [("float32", None), ("bfloat16", 1.0), ("float16", None)])
def test_a_step_waits_for_nothing(entry, precision, clip):
    torch.manual_seed(0)
    model = FasterRCNN(entry.model, entry.data).to(DEVICE).to(memory_format=torch.channels_last).train()
    learner = Learner(model, replace(entry.schedule, clip_grad_norm=clip), precision, Processes())
    if learner.scale is not None:
        learner.scale.restore([256.0, 0])  # a batch of noise overflows where torch begins
    learner.step(model, [batch_of()], 0.01).read()
    numbers, rows = record(lambda: learner.step(model, [batch_of()], 0.01))
    assert not numbers.values.is_there()
    kinds = Counter(row.kind for row in rows)
    assert kinds["sync"] == 0 and kinds["conv"] > 60
    small = sum(kinds[kind] for kind in ("launch", "memset", "memcpy"))
    assert small <= LAUNCHES[precision], Counter(row.name for row in rows if row.kind == "launch")
    assert kinds["layout"] == 0  # channels last, forward and backward
    copies = [row for row in rows if row.kind == "memcpy"]
    assert not [row for row in copies if row.name.startswith("pageable")]
    assert max(row.bytes for row in copies if "pinned" in row.name) == 2 * 96 * 128 * 3  # images as uint8
    values, broken = numbers.read()
    assert not broken and all(np.isfinite(list(values.values())))


def test_several_batches_adamw_and_averages_wait_for_nothing_either(entry):
    torch.manual_seed(0)
    model = FasterRCNN(entry.model, entry.data).to(DEVICE).to(memory_format=torch.channels_last).train()
    learner = Learner(model, replace(entry.schedule, optimizer="adamw", ema=0.75), "float32", Processes())

    def step():
        numbers = learner.step(model, [batch_of(), batch_of()], 0.001)
        learner.average.update(model)
        return numbers

    step().read()
    before = [average.cpu() for average in learner.average.model.parameters()]
    numbers, rows = record(step)
    assert sum(row.kind == "sync" for row in rows) == 0 and not numbers.values.is_there()
    assert not [row for row in rows if row.kind == "memcpy" and row.name.startswith("pageable")]
    _, broken = numbers.read()
    assert not broken
    for old, average, weight in zip(
        before, learner.average.model.parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(average.cpu(), 0.75 * old + 0.25 * weight.detach().cpu())


def test_the_rpn_masks_its_gradient_in_place():
    """The same gradients as with a masked copy, and less memory at the peak, which is training's."""
    torch.manual_seed(0)
    head = RPNHead(32, (4.0,), RPNConfig()).to(DEVICE).to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 96, 128, device=DEVICE).contiguous(memory_format=torch.channels_last)
    found, peaks = [], []
    for overwrite in (True, False):
        assert head.rpn_conv.overwrite_gradient
        head.rpn_conv.overwrite_gradient = overwrite
        leaf = x.clone().requires_grad_()
        loss = head.maps([leaf])[0].square().sum()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found.append(torch.autograd.grad(loss, [leaf, *head.parameters()]))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        head.rpn_conv.overwrite_gradient = True
    assert all(map(torch.equal, *found))
    assert peaks[0] <= peaks[1] - x.nbytes // 2  # without the map, the peak is elsewhere


def test_float32_is_float32_unless_tf32_is_asked_for(entry):
    """In training as in detection: torch's own choice for convolutions is TF32."""
    model = FasterRCNN(entry.model, entry.data).to(DEVICE).to(memory_format=torch.channels_last).train()
    image = np.zeros((64, 64, 3), dtype=np.uint8)

    def learn(precision):
        Learner(model, entry.schedule, precision, Processes()).step(model, [batch_of()], 0.01)

    work = {
        "torch's own": lambda: model.losses(batch_of()),
        "training": lambda: learn("float32"),
        "training, tf32": lambda: learn("tf32"),
        "detection": lambda: model.predict(image, (64, 64)),
        "fast detection": lambda: model.optimize().predict(image, (64, 64)),
        "fast detection, tf32": lambda: model.optimize("tf32").predict(image, (64, 64)),
    }
    for name, function in work.items():
        _, rows = record(function)
        convolutions = {row.name.endswith(", tf32") for row in rows if row.kind == "conv"}
        assert convolutions == {"tf32" in name or "own" in name}, name


def train(tiny, folder, **options):
    options = {"device": "cuda", "workers": 0, **options}
    return train_module.train(tiny_recipe(), *tiny, work_dir=folder, **options)


@pytest.fixture
def same_current_device():
    yield
    torch.cuda.set_device(0)


def test_more_steps_are_no_more_waits(tiny, tmp_path):
    """An epoch of 6 steps and one of 3, each with one log line and one checkpoint."""

    def waits(batch_size):
        options = {"epochs": 1, "batch_size": batch_size}
        result, rows = record(lambda: train(tiny, tmp_path / f"run{batch_size}", **options))
        lines = [json.loads(line) for line in (result.work_dir / "log.jsonl").read_text().splitlines()]
        assert [line["iter"] for line in lines] == [6 // batch_size]
        uploads = [row.bytes for row in rows if row.kind == "memcpy" and row.name == "pinned to device"]
        assert max(uploads) == batch_size * 64 * 64 * 3  # the loader's images, as uint8
        return sum(row.kind == "sync" for row in rows)

    assert waits(1) == waits(2) > 0


def test_a_step_that_was_not_finite_is_found_later_and_described(tiny, tmp_path, monkeypatch):
    """The next steps have been given to the device by then; they change nothing."""
    original = FasterRCNN.losses
    calls, weights = [], []

    def losses(self, batch):
        calls.append(batch)
        values, accuracy = original(self, batch)
        weights.append(self.roi_head.bbox_head.fc_cls.weight.detach().clone())
        if len(calls) == 2:
            values["loss_cls"] = values["loss_cls"] * float("nan")
        return values, accuracy

    monkeypatch.setattr(FasterRCNN, "losses", losses)
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss_cls, loss, grad_norm not finite.*\.png"):
        train(tiny, tmp_path / "run", epochs=1, batch_size=1)
    assert len(calls) > 2
    assert not torch.equal(weights[0], weights[1]) and all(torch.equal(weights[1], w) for w in weights[2:])
    evidence = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert evidence["iteration"] == 1 and evidence["values"]["loss_cls"] == "nan"
    assert "roi_head.bbox_head.fc_cls.weight" in evidence["parameters_with_bad_gradients"]
    assert [image["boxes"] for image in evidence["images"]] == [boxes.tolist() for boxes in calls[1].boxes]
    assert not (tmp_path / "run" / "last.pth").exists()


def test_a_step_of_float16_that_overflows_is_skipped_without_a_wait(entry):
    """It changes no weight and no momentum and halves the scale; the next step learns."""
    torch.manual_seed(0)
    model = FasterRCNN(entry.model, entry.data).to(DEVICE).to(memory_format=torch.channels_last).train()
    learner = Learner(model, entry.schedule, "float16", Processes())
    learner.scale.restore([256.0, 0])

    def state():
        momentum = [learner.optimizer.state[p]["momentum_buffer"] for p in learner.parameters]
        return [tensor.detach().cpu() for tensor in (*learner.parameters, *momentum)]

    learner.step(model, [batch_of()], 0.01).read()
    before = state()
    layer = model.roi_head.bbox_head.fc_cls.weight
    hook = layer.register_hook(lambda gradient: gradient * float("inf"))
    numbers, rows = record(lambda: learner.step(model, [batch_of()], 0.01))
    hook.remove()
    assert not any(row.kind == "sync" for row in rows)
    values, broken = numbers.read()
    assert not broken and values["skipped"] == 1 and values["loss_scale"] == 256
    assert all(map(torch.equal, state(), before)) and learner.scale.state() == [128, 0]
    values, broken = learner.step(model, [batch_of()], 0.01).read()
    assert not broken and values["skipped"] == 0 and values["loss_scale"] == 128
    assert not all(map(torch.equal, state(), before))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_is_one_graph_for_each_shape(entry, precision):
    """With the results of an eager step; a second shape is a second graph, and a bad step breaks training."""

    data = replace(entry.data, size=(160, 128))  # 96 x 128 is padded to 96 x 160

    def learners():
        for _ in range(2):
            torch.manual_seed(0)
            model = FasterRCNN(entry.model, data).to(DEVICE).to(memory_format=torch.channels_last)
            learner = Learner(model.train(), entry.schedule, precision, Processes())
            if learner.scale is not None:
                learner.scale.restore([256.0, 0])
            yield model, learner

    (model, eager), (twin, learner) = learners()
    graphs = StepGraphs(twin, learner)
    batch = batch_of()
    shape = smallest_holding((96, 128), few_shapes(data.size, data.pad_divisor))
    assert shape == (96, 160)
    padded = torch.zeros(2, *shape, 3, dtype=torch.uint8)
    padded[:, :96, :128] = batch.images.cpu()
    for seed, lr in ((1, 0.01), (2, 0.02), (3, 0.02)):
        torch.manual_seed(seed)
        wanted = eager.step(model, [replace(batch, images=padded.to(DEVICE))], lr).read()
        torch.manual_seed(seed)
        numbers, rows = record(lambda lr=lr: graphs.step([batch], lr))
        assert numbers.read() == wanted
        kinds = Counter(row.kind for row in rows)
    assert len(graphs.graphs) == 1 and kinds["graph"] == 1
    assert kinds["conv"] == kinds["sync"] == 0 and sum(kinds.values()) < 20
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)), name
    larger = replace(batch, images=torch.zeros(2, 2 * shape[0], shape[1], 3, dtype=torch.uint8).to(DEVICE))
    graphs.step([larger], 0.01)
    assert len(graphs.graphs) == 2


@pytest.mark.parametrize(
    ("mode", "device", "workers"), [("graph", "cuda", 0), ("eager", "cuda", 2), ("eager", "cuda:1", 0)]
)
def test_a_run_resumes_as_if_it_had_not_stopped(
    tiny, tmp_path, monkeypatch, same_current_device, mode, device, workers
):
    """From the checkpoint of the first of two epochs, whose file is whole; the mode may not change."""
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        pytest.skip("one device")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"epochs": 2, "batch_size": 2, "mode": mode, "device": device, "workers": workers}
    _, rows = record(lambda: train(tiny, whole, **options))
    assert {row.device for row in rows} == {index}
    original = run_module.learning_rate

    def crash(iteration, *rest):
        if iteration == 4:
            raise RuntimeError("power cut")
        return original(iteration, *rest)

    monkeypatch.setattr(run_module, "learning_rate", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny, parts, **options)
    monkeypatch.setattr(run_module, "learning_rate", original)
    assert read_training_state(parts / "last.pth")["meta"]["iter"] == 3
    other = {"eager": "graph", "graph": "eager"}[mode]
    with pytest.raises(CheckpointError, match=f"mode={mode}, now mode={other}"):
        train(tiny, parts, **{**options, "mode": other}, resume=True)
    train(tiny, parts, **options, resume=True)
    first, second = (read_training_state(folder / "last.pth") for folder in (whole, parts))
    assert first["meta"]["iter"] == second["meta"]["iter"] == 6
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    for index, entry in first["optimizer"]["state"].items():
        assert torch.equal(entry["momentum_buffer"], second["optimizer"]["state"][index]["momentum_buffer"])


def test_the_commands(tiny, tmp_path, monkeypatch, capsys):
    """Training, evaluation and detection as a user starts them."""
    monkeypatch.setattr("frcnn.cli.recipe_named", lambda name: tiny_recipe())
    annotations, images = map(str, tiny)
    run, found = str(tmp_path / "run"), str(tmp_path / "found")
    data = ["--train-annotations", annotations, "--train-images", images]
    data += ["--val-annotations", annotations, "--val-images", images]
    commands = [
        ["train", "tiny", *data, "--work-dir", run, "--epochs", "1", "--workers", "2", "--val-losses"],
        [
            "eval",
            f"{run}/best.pth",
            "--annotations",
            annotations,
            "--images",
            images,
            "--precision",
            "bfloat16",
        ],
        ["detect", images, "--model", f"{run}/best.pth", "--output", found, "--min-score", "0"],
    ]

    def ended(words):
        with pytest.raises(SystemExit) as end:
            main([*words, "--device", "cuda"])
        return end.value.code

    for words in commands:
        code, rows = record(lambda words=words: ended(words))
        assert code == 0, capsys.readouterr().err
        assert sum(row.kind == "conv" for row in rows) > 60, words[0]
    assert "bbox_mAP_50" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())) == 6
    assert len(list((tmp_path / "found").glob("*.png"))) == 6
