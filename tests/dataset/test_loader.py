"""Batches do not depend on who makes them."""

import pytest
import torch
from tiny_coco import read_content, write_content, write_tiny

from frcnn.config import DataConfig
from frcnn.data import DatasetError, TrainingBatches, evaluation_loader, load_coco, training_loader

DATA = DataConfig(size=(96, 64), train_short_sides=(48, 64), pad_divisor=32)


@pytest.fixture
def dataset(tmp_path):
    return load_coco(*write_tiny(tmp_path))


def batches_of(dataset, workers, start=0):
    batches = TrainingBatches(dataset.widths >= dataset.heights, 2, epochs=2, seed=5, start=start)
    return list(training_loader(dataset, DATA, batches, workers))


def assert_same(first, second):
    assert len(first) == len(second)
    for (a, a_indices), (b, b_indices) in zip(first, second, strict=True):
        assert a_indices == b_indices and a.sizes == b.sizes
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
    for batch, _ in batches_of(dataset, 0):
        assert batch.images.shape[2] % 32 == 0 and batch.images.shape[3] % 32 == 0
        for image, (height, width), boxes in zip(batch.images, batch.sizes, batch.boxes, strict=True):
            assert image[:, height:].abs().sum() == 0 and image[:, :, width:].abs().sum() == 0
            assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


def test_evaluation_keeps_the_order_and_tells_the_scale(dataset):
    seen = []
    for batch, scales, indices in evaluation_loader(dataset, DATA, [4, 0, 3], batch_size=2, workers=0):
        for (height, width), (scale_x, scale_y), index in zip(batch.sizes, scales, indices, strict=True):
            assert (round(dataset.widths[index] * scale_x), round(dataset.heights[index] * scale_y)) == (
                width,
                height,
            )
            seen.append(index)
    assert seen == [4, 0, 3]


def test_a_picture_of_another_size_than_annotated_is_an_error(tmp_path):
    annotations, images = write_tiny(tmp_path)
    content = read_content(annotations)
    content["images"][0].update(width=48, height=50)
    dataset = load_coco(write_content(tmp_path, content), images)
    with pytest.raises(DatasetError, match=r"0\.png is 48x64 pixels .* says 48x50"):
        list(evaluation_loader(dataset, DATA, [0], 1, 0))
