"""Losses of a validation set: those of the model itself, whatever they are computed beside."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from float_batch import float_batch
from tiny_coco import read_content, write_content, write_tiny

from frcnn.checkpoint.run_state import read_training_state
from frcnn.checkpoint.save import checksum
from frcnn.cli import main
from frcnn.data import DatasetError, load_dataset
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module
from frcnn.engine.evaluate import evaluate
from frcnn.engine.validation_loss import means
from frcnn.read_image import read_image
from frcnn.structures import Batch
from frcnn.zoo.build import build, load

train = partial(train_module.train, device="cpu", workers=0)
NAMES = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss"]


def by_hand(model, annotations, images, indices=range(6)):
    """The mean over images of the losses of a batch that holds one of them."""
    dataset = load_dataset(annotations, images)
    label_of = [model.class_names.index(name) for name in dataset.class_names]
    rows = []
    for index in indices:
        image = read_image(dataset.image_path(index))
        batch, [(x, y)] = float_batch(model, [image], model.data.size)
        boxes, labels = dataset.boxes_of(index)
        boxes, labels = torch.from_numpy(boxes) * torch.tensor([x, y, x, y]), torch.tensor(label_of)[labels]
        batch = Batch(batch.images, batch.sizes, (boxes,), (labels,))
        with torch.no_grad():
            losses, _ = model.eval().losses(replace(batch, seed=index))
        rows.append([*losses.values()])
    return np.array(rows).mean(0)


def test_they_are_the_models_own_and_leave_no_trace(tiny, model):
    expected = by_hand(model, *tiny)
    model.train()
    random, weights = torch.get_rng_state(), checksum(model.state_dict())
    first = evaluate(model, *tiny, losses=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and checksum(model.state_dict()) == weights
    assert list(first.losses) == NAMES and first.losses["loss_bbox"] > 0
    assert [first.losses[name] for name in NAMES[:4]] == pytest.approx(expected.tolist(), rel=1e-5)
    assert first.losses["loss"] == pytest.approx(expected.sum(), rel=1e-5)
    assert f"loss_rpn_cls  {first.losses['loss_rpn_cls']:.4f}\n" in first.table()
    again = evaluate(model.eval(), *tiny, losses=True, batch_size=4, threads=3)
    assert again == first
    without = evaluate(model, *tiny)
    assert without.losses == {} and without.metrics == first.metrics


def test_regions_to_ignore_count_where_training_looks_at_them(tiny, recipe, tmp_path):
    """In training, in its log, after a resume; a run that does not look at them has other losses."""
    content = read_content(tiny[0])
    for entry in content["annotations"][::2]:
        entry["iscrowd"] = 1
    tiny = write_content(tmp_path, content), tiny[1]
    looks = replace(recipe, model=replace(recipe.model, ignore_iof=0.3))
    logged = {}
    for name, each in (("looks", looks), ("not", recipe)):
        run = train(each, *tiny, *tiny, work_dir=tmp_path / name, epochs=2, val_losses=True, eval_every=1)
        logged[name] = [entry["val_loss_rpn_cls"] for entry in run.history]
    assert logged["looks"] != logged["not"]
    model = load(tmp_path / "looks" / "last.pth")
    assert model.config.ignore_iof == 0.3
    losses = evaluate(model, *tiny, losses=True).losses
    assert losses["loss_rpn_cls"] == pytest.approx(logged["looks"][-1], rel=1e-5)


def test_classes_in_another_order(tiny, recipe):
    torch.manual_seed(0)
    model = build(recipe, class_names=("square", "bar"))
    losses = evaluate(model, *tiny, losses=True).losses
    assert [losses[name] for name in NAMES[:4]] == pytest.approx(by_hand(model, *tiny).tolist(), rel=1e-5)


def test_only_images_that_training_would_take_count(tiny, model, tmp_path):
    content = read_content(tiny[0])
    image, other = content["images"][0]["id"], content["images"][1]["id"]
    bare = [entry for entry in content["annotations"] if entry["image_id"] not in (image, other)]
    crowd = [{**entry, "iscrowd": 1} for entry in content["annotations"] if entry["image_id"] == other]
    annotations = write_content(tmp_path, content | {"annotations": bare + crowd})
    expected = by_hand(model, *tiny, range(3, 6)).tolist()
    (tiny[1] / content["images"][2]["file_name"]).write_bytes(b"not an image")
    result = evaluate(model, annotations, tiny[1], losses=True)
    assert len(result.failed) == 1
    assert [result.losses[name] for name in NAMES[:4]] == pytest.approx(expected, rel=1e-5)

    none = write_content(tmp_path, content | {"annotations": crowd}, "none.json")
    with pytest.raises(DatasetError, match="none of its 6 images can be trained on"):
        evaluate(model, none, tiny[1], losses=True)


def test_what_only_detects_has_none(tiny, model):
    with pytest.raises(ValueError, match="losses=True needs the model itself"):
        evaluate(model.optimize(), *tiny, losses=True)


def test_means_do_not_depend_on_how_images_are_divided():
    values = np.random.default_rng(0).normal(size=30).astype(np.float32).tolist()
    whole = means([{"loss": values}])
    assert means([{"loss": values[::2]}, {}, {"loss": values[1::2]}]) == whole
    assert whole == {"loss": pytest.approx(np.mean(values))} and means([{}]) == {}


def val_lines(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["mode"] == "val"]


def test_training_logs_them_and_is_not_changed_by_them(longer, tiny, tmp_path, monkeypatch, capsys):
    """Nor does an interruption change them."""
    validation = write_tiny(tmp_path / "validation", images=3, seed=1)
    folders = [tmp_path / name for name in ("without", "with", "parts")]
    train(longer, *tiny, *validation, work_dir=folders[0])
    capsys.readouterr()
    result = train(longer, *tiny, *validation, work_dir=folders[1], val_losses=True)
    assert f"val_loss {result.metrics['val_loss']:.3f}\n" in capsys.readouterr().out

    original = run_module.learning_rate

    def learning_rate(iteration, *rest):
        if iteration == 7:
            raise RuntimeError("power cut")
        return original(iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "learning_rate", learning_rate)
        with pytest.raises(RuntimeError, match="power cut"):
            train(longer, *tiny, *validation, work_dir=folders[2], val_losses=True)
    train(longer, *tiny, *validation, work_dir=folders[2], val_losses=True, resume=True)

    plain, whole, parts = (read_training_state(folder / "last.pth") for folder in folders)
    assert checksum(whole) == checksum(parts)
    assert val_lines(folders[1]) == val_lines(folders[2])
    for part in ("state_dict", "optimizer"):
        assert checksum(plain[part]) == checksum(whole[part])
    assert checksum(plain["training"]["random_states"]) == checksum(whole["training"]["random_states"])
    last = val_lines(folders[1])[-1]
    losses = {f"val_{name}": last[f"val_{name}"] for name in NAMES}
    assert losses.items() <= result.metrics.items()
    # of the weights that the run ended with
    again = evaluate(load(folders[1] / "last.pth"), *validation, losses=True).losses
    assert losses == {f"val_{name}": value for name, value in again.items()}


def test_training_refuses_them_without_a_set_to_compute_them_of(recipe, tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="val_losses=True needs a validation set"):
        train(recipe, *tiny, work_dir=run, val_losses=True)
    content = read_content(tiny[0])
    crowd = [{**entry, "iscrowd": 1} for entry in content["annotations"]]
    none = write_content(tmp_path, content | {"annotations": crowd}, "none.json")
    with pytest.raises(DatasetError, match="none of its 6 images can be trained on"):
        train(recipe, *tiny, none, tiny[1], work_dir=run, val_losses=True)
    assert not run.exists()


def test_on_the_command_line(tiny, model, tmp_path, capsys):
    model.save(tmp_path / "model.pth")
    words = ["eval", tmp_path / "model.pth", "--annotations", tiny[0], "--images", tiny[1], "--losses"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--device", "cpu"])
    assert not end.value.code
    losses = evaluate(model, *tiny, losses=True).losses
    assert "".join(f"{name:<13} {value:.4f}\n" for name, value in losses.items()) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*map(str, words), "--device", "cpu", "--precision", "bfloat16"])
    assert "--losses computes in float32, so --precision bfloat16 cannot" in capsys.readouterr().err
