"""The options that users train with and the zoo does not: AdamW, averages of weights, several batches a step,
an early end, callbacks; and that a resumed run with all of them is the uninterrupted one."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_coco import read_content, write_content, write_tiny

import frcnn
from frcnn.checked import OptionError
from frcnn.checkpoint.load import CheckpointError
from frcnn.checkpoint.run_state import read_training_state
from frcnn.data.combine import from_samples
from frcnn.data.convert import convert
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module
from frcnn.engine import validation
from frcnn.engine.distributed import Processes
from frcnn.engine.step import Learner
from frcnn.structures import Batch

train = partial(train_module.train, device="cpu", workers=0)


def scheduled(recipe, **changes):
    return replace(recipe, schedule=replace(recipe.schedule, **changes))


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]])
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    return Batch(pixels, ((64, 64),), (boxes,), (torch.tensor([0, 1]),))


def gradients_of(model, batch):
    """Of the sum of the losses, as a plain program computes them."""
    model = deepcopy(model)
    losses, _ = model(batch, with_accuracy=True)
    torch.stack([*losses.values()]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def still(model):
    """Batches do not change its statistics, so that one after the other is all at once."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return model.train()


def test_a_step_of_several_batches_learns_from_the_mean_of_their_gradients(still, recipe):
    recipe = scheduled(recipe, momentum=0.0, weight_decay=0.0)
    torch.manual_seed(1)
    wanted = [gradients_of(still, batch_of(seed)) for seed in (1, 2, 3)]
    before = {name: p.detach().clone() for name, p in still.named_parameters()}
    learner = Learner(still, recipe.schedule, "float32", Processes())
    torch.manual_seed(1)
    values, broken = learner.step(still, [batch_of(seed) for seed in (1, 2, 3)], 0.5).read()
    assert not broken and values["loss"] > 0
    for name, parameter in still.named_parameters():
        mean = sum(each[name] for each in wanted) / 3
        torch.testing.assert_close((before[name] - parameter) / 0.5, mean, rtol=1e-4, atol=2e-6)


def test_adamw_is_torchs(still, recipe):
    """Its rate, betas and decay, whatever is fused, over three steps."""
    plain = deepcopy(still)
    schedule = scheduled(recipe, optimizer="adamw", momentum=0.8, weight_decay=0.05).schedule
    learner = Learner(still, schedule, "float32", Processes())
    theirs = torch.optim.AdamW(plain.parameters(), betas=(0.8, 0.999), weight_decay=0.05, foreach=False)
    for seed in range(3):
        for group in theirs.param_groups:
            group["lr"] = 0.001 * (seed + 1)
        torch.manual_seed(seed)
        learner.step(still, [batch_of(seed)], 0.001 * (seed + 1))
        torch.manual_seed(seed)
        for name, gradient in gradients_of(plain, batch_of(seed)).items():
            plain.get_parameter(name).grad = gradient
        theirs.step()
    for name, parameter in still.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_adamw_does_not_take_a_step_that_is_not_finite(still, recipe):
    learner = Learner(still, scheduled(recipe, optimizer="adamw").schedule, "float32", Processes())
    learner.step(still, [batch_of(0)], 0.001)
    kept = [tensor for p in learner.parameters for tensor in learner.optimizer.state[p].values()]
    state = [*learner.parameters, *kept]
    before = [tensor.detach().clone() for tensor in state]
    bad = batch_of(1)
    bad.images[:] = float("nan")
    _, broken = learner.step(still, [bad], 0.001).read()
    assert broken and all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept_as_the_best(
    recipe, tiny, tmp_path, monkeypatch
):
    evaluated = []
    original = validation.evaluate

    def evaluate(model, *rest, **options):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return original(model, *rest, **options)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    weights = []
    learn = run_module.TrainingRun._learn

    def recorded(self, *rest):
        for when in ("before", "after")[bool(weights) :]:
            if when == "after":
                learn(self, *rest)
            weights.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(run_module.TrainingRun, "_learn", recorded)
    result = train(scheduled(recipe, ema=0.75, epochs=1), *tiny, *tiny, work_dir=tmp_path / "run")
    wanted = weights[0]
    for step in weights[1:]:
        wanted = {name: 0.75 * wanted[name] + 0.25 * step[name] for name in wanted}
    (averaged,) = evaluated
    best, last = torch.load(result.best)["state_dict"], torch.load(result.checkpoint)["state_dict"]
    name = "backbone.layer1.0.conv1.weight"
    torch.testing.assert_close(averaged[name], wanted[name])
    assert torch.equal(best[name], averaged[name])
    assert torch.equal(last[name], weights[-1][name]) and not torch.equal(last[name], best[name])
    statistics = "backbone.layer1.0.bn1.running_mean"
    assert torch.equal(best[statistics], last[statistics]) and last[statistics].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_with_all_of_it_is_the_uninterrupted_one(
    recipe, tiny, tmp_path, monkeypatch, optimizer, stop_at
):
    batches = {"accumulate": 2, "images_per_process": 1, "epochs": 3}
    recipe = scheduled(recipe, optimizer=optimizer, decay_shape="cosine", ema=0.9, **batches)
    data = replace(recipe.data, crop=0.5, scale_jitter=(0.5, 2.0), color_jitter=0.3, repeat_rare=0.9)
    # statistics of a small image alone would be of one cell
    model = replace(recipe.model, backbone=replace(recipe.model.backbone, norm_eval=True))
    recipe = replace(recipe, data=data, model=model)
    whole = train(recipe, *tiny, *tiny, work_dir=tmp_path / "whole")
    rate = run_module.learning_rate

    def interrupted(iteration, *rest):
        if iteration == stop_at:
            raise MemoryError("made to fail")
        return rate(iteration, *rest)

    parts = partial(train, recipe, *tiny, *tiny, work_dir=tmp_path / "parts", save_every=1)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(run_module, "learning_rate", interrupted)
        parts()
    parts(resume=True)
    first, second = (read_training_state(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert first["meta"]["iter"] == second["meta"]["iter"] == 9
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
        assert torch.equal(first["training"]["average"][name], second["training"]["average"][name]), name
    for index, kept in first["optimizer"]["state"].items():
        for name, value in kept.items():
            assert torch.equal(value, second["optimizer"]["state"][index][name])
    assert first["training"]["history"] == second["training"]["history"] == whole.history


def test_a_run_of_another_optimizer_or_average_is_not_gone_on_with(recipe, tiny, tmp_path):
    train(scheduled(recipe, ema=0.9), *tiny, *tiny, work_dir=tmp_path / "run", epochs=1)
    for changes in ({"optimizer": "adamw", "ema": 0.9}, {"ema": 0.0}, {"ema": 0.9, "accumulate": 2}):
        with pytest.raises(CheckpointError, match="comes from a run with other settings"):
            train(
                scheduled(recipe, **changes), *tiny, *tiny, work_dir=tmp_path / "run", epochs=1, resume=True
            )


def test_training_ends_after_evaluations_without_a_better_ap(recipe, tiny, tmp_path, monkeypatch, capsys):
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    original = validation.evaluate

    def evaluate(*rest, **options):
        result = original(*rest, **options)
        return replace(result, metrics=result.metrics | {"bbox_mAP": next(scores)})

    monkeypatch.setattr(validation, "evaluate", evaluate)
    recipe = scheduled(recipe, patience=2, epochs=5)
    run = partial(train, recipe, *tiny, *tiny, work_dir=tmp_path / "run")
    result = run()
    assert [entry["bbox_mAP"] for entry in result.history] == [0.1, 0.3, 0.3, 0.2]
    assert "no better AP in 2 evaluations: training ends here" in capsys.readouterr().out
    assert torch.load(result.best)["meta"]["epoch"] == 2
    assert run(resume=True).history == result.history


class Diary(frcnn.Callback):
    def __init__(self):
        self.lines = []

    def step(self, step, numbers):
        self.lines.append(("step", step))
        assert {"lr", "loss", "grad_norm"} < numbers.keys()

    def epoch(self, epoch, means):
        self.lines.append(("epoch", epoch))
        assert {"lr", "loss", "time"} < means.keys()

    def evaluation(self, epoch, metrics):
        self.lines.append(("evaluation", epoch, metrics["bbox_mAP"]))

    def end(self, result):
        self.lines.append(("end", result.metrics["bbox_mAP"]))


def test_callbacks_are_told_in_the_order_of_training(recipe, tiny, tmp_path):
    diary = Diary()
    result = train(recipe, *tiny, *tiny, work_dir=tmp_path / "run", callbacks=[frcnn.Callback(), diary])
    first, second = (entry["bbox_mAP"] for entry in result.history)
    assert diary.lines == [
        *[("step", step) for step in (1, 2, 3)], ("epoch", 1), ("evaluation", 1, first),
        *[("step", step) for step in (4, 5, 6)], ("epoch", 2), ("evaluation", 2, second), ("end", second),
    ]  # fmt: skip


def test_a_callbacks_error_ends_training_and_what_is_saved_stays(recipe, tiny, tmp_path):
    class Stopping(frcnn.Callback):
        def evaluation(self, epoch, metrics):
            raise LookupError("no such server")

    run = partial(train, recipe, *tiny, *tiny, work_dir=tmp_path / "run")
    with pytest.raises(LookupError, match="no such server"):
        run(callbacks=[Stopping()])
    assert run(resume=True).history[0]["epoch"] == 1


def test_rare_classes_are_seen_more_often(recipe, tiny, tmp_path):
    """Of the classes of the tiny set, `bar` is made the rare one: one image of six has it."""
    content = read_content(tiny[0])
    names = {category["id"]: category["name"] for category in content["categories"]}
    kept = {}
    for entry in content["annotations"]:
        kept.setdefault(entry["image_id"], []).append(entry)
    rare = min(kept)
    (bar,) = (number for number, name in names.items() if name == "bar")
    (square,) = (number for number, name in names.items() if name == "square")
    for image, entries in kept.items():
        for entry in entries:
            entry["category_id"] = bar if image == rare else square
    write_content(tiny[0].parent, content)
    dataset = frcnn.load_dataset(*tiny).for_training()
    shares = dataset.shares(1.0)
    images = len(dataset)
    of_rare, of_others = images**0.5, (images / (images - 1)) ** 0.5
    expected = [of_rare if number == rare else of_others for number in dataset.image_ids.tolist()]
    assert shares.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_another_format_of_the_data_trains_to_the_same_ap(recipe, tiny, tmp_path, format):
    """Trained on VOC's or YOLO's files, evaluated on COCO's. YOLO's boxes are fractions: rounded."""
    converted = convert(frcnn.load_dataset(*tiny), format, tmp_path / format)
    of_coco = train(recipe, *tiny, *tiny, work_dir=tmp_path / "of_coco")
    of_other = train(recipe, *converted, *tiny, work_dir=tmp_path / "of_other")
    first, second = (torch.load(result.checkpoint)["state_dict"] for result in (of_coco, of_other))
    if format == "voc":
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert of_other.history == of_coco.history
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)
    assert of_other.metrics["bbox_mAP"] == pytest.approx(of_coco.metrics["bbox_mAP"], abs=1e-3)


class Items(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        boxes, labels = self.dataset.boxes_of(index)
        return self.dataset.read(index), {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
        }


def test_a_map_style_data_set_trains_as_its_files_do(recipe, tiny, tmp_path):
    read = frcnn.load_dataset(*tiny)
    made = from_samples(Items(read), read.class_names)
    of_files = train(recipe, *tiny, *tiny, work_dir=tmp_path / "files")
    of_items = train_module.train(
        recipe, train=made, val=made, work_dir=tmp_path / "items", device="cpu", workers=2
    )
    assert of_items.history == of_files.history
    first, second = (torch.load(result.checkpoint)["state_dict"] for result in (of_files, of_items))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_several_data_sets_are_trained_on_together(recipe, tiny, tmp_path, capsys):
    other = write_tiny(tmp_path / "other", 2, seed=5)
    files, folders = [tiny[0], other[0]], [tiny[1], other[1]]
    result = train(recipe, files, folders, *tiny, work_dir=tmp_path / "run", epochs=1)
    assert "8 images, 16 boxes" in capsys.readouterr().out
    model = frcnn.load(result.checkpoint)
    assert model.class_names == ("bar", "square")
    files[1] = other[0].rename(other[0].with_name("recipe.json"))
    with pytest.raises(ValueError, match=r"other/recipe\.json"):
        train(recipe, files, folders, work_dir=files[1].parent, epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "there is nothing to train on"),
        ({"train_annotations": "a.json"}, "train_annotations and train_images belong together"),
        ({"train_images": "a"}, "train_annotations and train_images belong together"),
        (
            {"train": [1], "train_annotations": "a", "train_images": "b"},
            "two data sets: give one of them",
        ),
        ({"train": [1], "val_images": "b"}, "val_annotations and val_images belong together"),
    ],
)
def test_data_that_are_missing_or_doubled_are_named(recipe, options, said):
    with pytest.raises(OptionError, match=said):
        train(recipe, **options)
