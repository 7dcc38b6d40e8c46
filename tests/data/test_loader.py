"""Batches do not depend on who makes them."""

import multiprocessing
import re

import pytest
import torch
from tiny_coco import read_content, write_content, write_tiny

from frcnn.config import DataConfig
from frcnn.data import (
    DatasetError,
    TrainingBatches,
    load_dataset,
    running,
    training_loader,
)

DATA = DataConfig(size=(96, 64), train_short_sides=(48, 64), pad_divisor=32)


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(*write_tiny(tmp_path))


def batches_of(dataset, workers, start=0):
    batches = TrainingBatches(dataset.widths >= dataset.heights, 2, epochs=2, seed=5, start=start)
    with running(training_loader(dataset, DATA, batches, workers)) as loaded:
        return list(loaded)


def assert_same(first, second):
    assert len(first) == len(second)
    for (a, a_indices, a_bad), (b, b_indices, b_bad) in zip(first, second, strict=True):
        assert a_indices == b_indices and a.sizes == b.sizes and a_bad == b_bad
        assert torch.equal(a.images, b.images)
        assert all(map(torch.equal, a.boxes, b.boxes)) and all(map(torch.equal, a.labels, b.labels))


def test_workers_do_not_change_the_batches(dataset):
    assert_same(batches_of(dataset, workers=0), batches_of(dataset, workers=2))


def test_resumed_batches_are_the_rest(dataset):
    assert_same(batches_of(dataset, 0)[4:], batches_of(dataset, 0, start=4))


def test_loading_leaves_the_random_state_of_training_alone(dataset):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches_of(dataset, workers=1)
    assert torch.equal(torch.rand(4), expected)


def test_batches_are_padded_to_the_divisor_with_zeros(dataset):
    for batch, _, _ in batches_of(dataset, 0):
        assert batch.images.dtype == torch.uint8 and batch.images.shape[3] == 3
        assert batch.images.shape[1] % 32 == 0 and batch.images.shape[2] % 32 == 0
        for image, (height, width), boxes in zip(batch.images, batch.sizes, batch.boxes, strict=True):
            assert image[height:].sum() == 0 and image[:, width:].sum() == 0 and image[:height, :width].any()
            assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


@pytest.fixture
def damaged(tmp_path):
    """Six images: 0 of another size than annotated, 1 no image, 3 gone."""
    annotations, images = write_tiny(tmp_path)
    content = read_content(annotations)
    content["images"][0].update(width=48, height=50)
    dataset = load_dataset(write_content(tmp_path, content), images)
    (images / "1.png").write_bytes(b"not an image")
    (images / "3.png").unlink()
    return dataset


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_good_image_takes_the_place_of_a_bad_one(damaged, workers):
    batches = TrainingBatches(damaged.widths >= damaged.heights, 2, epochs=1, seed=5)
    wanted = [key.index for keys in batches for key in keys]
    with running(training_loader(damaged, DATA, batches, workers, max_bad_images=0.5)) as loaded:
        found = list(loaded)
    used = [index for _, indices, _ in found for index in indices]
    assert used == [{0: 2, 1: 2, 3: 4}.get(index, index) for index in wanted]
    reasons = {image.index: image.reason for _, _, bad in found for image in bad}
    assert reasons.keys() == {0, 1, 3}
    assert f"{damaged.image_path(0)} is 48x64 pixels" in reasons[0] and "says 48x50" in reasons[0]
    assert all(str(damaged.image_path(index)) in reason for index, reason in reasons.items())
    for batch, indices, _ in found:
        for index, boxes in zip(indices, batch.boxes, strict=True):
            assert len(boxes) == len(damaged.boxes_of(index)[0])


def test_past_the_limit_a_blank_image_lets_training_stop(damaged):
    batches = TrainingBatches(damaged.widths >= damaged.heights, 6, epochs=1, seed=5)
    with running(training_loader(damaged, DATA, batches, 0, max_bad_images=0.1)) as loaded:
        ((batch, _, bad),) = loaded
    # one may be bad, so 0 and 1 in a row are too many
    blank = [i for i, boxes in enumerate(batch.boxes) if len(boxes) == 0]
    assert len(blank) == 1 and batch.images[blank[0]].sum() == 0
    assert {image.index for image in bad} == {0, 1, 3}


def test_another_error_in_a_worker_is_one_message(dataset, monkeypatch):
    def fail(*arguments):
        raise TypeError("a mistake")

    monkeypatch.setattr("frcnn.data.loader.augment", fail)
    with pytest.raises(DatasetError) as caught:
        batches_of(dataset, workers=2)
    assert re.fullmatch(r"\S+\.png: TypeError: a mistake \(workers=0 shows where\)", str(caught.value))
    assert not multiprocessing.active_children()
    with pytest.raises(TypeError, match="a mistake"):
        batches_of(dataset, workers=0)


def test_workers_end_with_the_block(dataset):
    batches = TrainingBatches(dataset.widths >= dataset.heights, 2, epochs=9)
    with pytest.raises(KeyError), running(training_loader(dataset, DATA, batches, 2)) as loaded:
        next(loaded)
        assert len(multiprocessing.active_children()) == 2
        raise KeyError
    assert not multiprocessing.active_children()


def test_crowd_regions_come_along_where_they_are_looked_at(tmp_path):
    """With label -1, resized and flipped as the boxes are."""
    annotations, images = write_tiny(tmp_path)
    content = read_content(annotations)
    content["annotations"][0]["iscrowd"] = 1
    dataset = load_dataset(write_content(tmp_path, content), images)
    batches = TrainingBatches(dataset.widths >= dataset.heights, 2, epochs=1, seed=5)
    found = {}
    for with_crowd in (False, True):
        with running(training_loader(dataset, DATA, batches, 0, with_crowd=with_crowd)) as loaded:
            for batch, indices, _ in loaded:
                for index, boxes, labels in zip(indices, batch.boxes, batch.labels, strict=True):
                    found[with_crowd, index] = boxes, labels
    for index in range(len(dataset)):
        boxes, labels = found[False, index]
        with_them, their_labels = found[True, index]
        objects = their_labels >= 0
        assert torch.equal(with_them[objects], boxes) and torch.equal(their_labels[objects], labels)
        assert (~objects).sum() == (index == 0)
