"""Bad images do not stop training or evaluation, up to a share; they are counted and named."""

import os
import signal
from functools import partial

import pytest
import torch
from tiny_coco import write_tiny

from frcnn.checkpoint.run_state import read_training_state
from frcnn.data import DatasetError, load_dataset
from frcnn.data.loader import BadImage, allowed_bad_images
from frcnn.engine import run as run_module
from frcnn.engine import train as train_module
from frcnn.engine.bad_images import BadImages
from frcnn.engine.evaluate import evaluate
from frcnn.engine.interrupt import Interrupted
from frcnn.zoo.build import build

train = partial(train_module.train, device="cpu", workers=0)


@pytest.fixture
def damaged(tmp_path):
    """A training set of 6 images, of which one is no image, and its path."""
    annotations, images = write_tiny(tmp_path / "damaged")
    (images / "1.png").write_bytes(b"not an image")
    return annotations, images, images / "1.png"


def test_training_goes_on_and_names_the_image_once(longer, damaged, tmp_path, capsys):
    *data, bad = damaged
    result = train(longer, *data, work_dir=tmp_path / "run")
    assert result.bad_images == {str(bad): 4}  # once an epoch
    text = capsys.readouterr().out
    assert text.count(f"another image takes the place of a bad one: {bad}") == 1
    assert "1 images could not be used, and others took their place:\n" in text and "(4x)\n" in text
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert sum('"bad_image"' in line and str(bad) in line for line in lines) == 1


def test_a_resumed_run_knows_the_bad_images_and_ends_bit_identical(longer, damaged, tmp_path, monkeypatch):
    *data, bad = damaged
    train(longer, *data, work_dir=tmp_path / "whole")
    original = run_module.learning_rate

    def learning_rate(iteration, *rest):
        if iteration == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return original(iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "learning_rate", learning_rate)
        with pytest.raises(Interrupted):
            train(longer, *data, work_dir=tmp_path / "parts")
    result = train(longer, *data, work_dir=tmp_path / "parts", workers=2, resume=True)
    assert result.bad_images == {str(bad): 4}
    first, second = (read_training_state(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    assert first["training"]["bad_images"] == second["training"]["bad_images"]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert [log.count('"bad_image"') for log in logs] == [1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_past_the_share_training_saves_and_stops(longer, damaged, tmp_path, workers):
    *data, _ = damaged
    (data[1] / "4.png").write_bytes(b"")
    run = tmp_path / "run"
    with pytest.raises(DatasetError) as caught:
        train(longer, *data, work_dir=run, workers=workers)
    message = str(caught.value)
    assert message.startswith(f"2 of the 6 training images of {data[0]} cannot be used")
    assert "max_bad_images=0.01 allows 1" in message and "1.png" in message and "4.png" in message
    steps = read_training_state(run / "last.pth")["meta"]["iter"]
    assert steps < 3 and f"The {steps} steps before are in {run / 'last.pth'}" in message
    result = train(longer, *data, work_dir=run, resume=True, max_bad_images=0.5)
    assert len(result.bad_images) == 2


def test_processes_count_bad_images_together(pair, damaged, tmp_path):
    """Whoever meets the second one, both save and stop in the same step."""
    *data, _ = damaged
    (data[1] / "4.png").write_bytes(b"")
    run = tmp_path / "run"
    processes = pair("--workers", 0, "--epochs", 4, data=data)
    assert [process.end() for process in processes] == [1, 1]
    steps = read_training_state(run / "last.pth")["meta"]["iter"]
    for process in processes:
        assert f"2 of the 6 training images of {data[0]} cannot be used" in process.text()
        assert f"The {steps} steps before are in {run / 'last.pth'}" in process.text()
        assert "Traceback" not in process.text()
    assert processes[0].text().count("another image takes the place of a bad one") == 2


def test_none_may_be_bad(longer, damaged, tmp_path):
    *data, _ = damaged
    with pytest.raises(DatasetError, match=r"1 of the 6 .*max_bad_images=0 allows 0: .*1\.png"):
        train(longer, *data, work_dir=tmp_path / "run", max_bad_images=0)


def test_allowed_shares():
    assert [allowed_bad_images(6, share) for share in (0, 0.01, 0.5, 1)] == [0, 1, 3, 5]
    assert allowed_bad_images(1, 1) == 0  # it would be trained on nothing
    assert allowed_bad_images(118_287, 0.01) == 1182


def test_only_the_first_few_are_named(tiny):
    images = BadImages(load_dataset(*tiny), 0.5)
    images.add([BadImage(0, "a"), BadImage(1, "b"), BadImage(2, "c"), BadImage(0, "a")])
    assert not images.too_many and images.summary().endswith("place:\n  a (2x)\n  b (1x)\n  c (1x)")
    images.add([BadImage(3, "d"), BadImage(4, "e"), BadImage(5, "f")])
    assert images.too_many and ": a; b; c; d; e; …. What" in str(images.error("What"))
    again = BadImages(load_dataset(*tiny), 0.5)
    again.restore(images.state())
    assert again.summary() == images.summary() and again.counts() == images.counts()


def test_evaluation_counts_the_objects_of_a_bad_image_as_missed(recipe, damaged):
    *data, bad = damaged
    model = build(recipe, class_names=("bar", "square"))
    result = evaluate(model, *data, threads=2)
    assert list(result.failed) == [str(bad)] and str(bad) in result.failed[str(bad)]
    assert f"1 images could not be used; their objects count as missed:\n  {bad}" in result.table()
    for image in data[1].iterdir():
        image.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of the 6 images of"):
        evaluate(model, *data)


def test_bad_validation_images_are_said_in_training(recipe, damaged, tiny, tmp_path, capsys):
    train(recipe, *tiny, *damaged[:2], work_dir=tmp_path / "run")
    assert capsys.readouterr().out.count("1 images could not be used; their objects count as missed:") == 2
