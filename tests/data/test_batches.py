"""Which images make up which step, in one process and in several."""

import numpy as np
import pytest

from frcnn.data import TrainingBatches
from frcnn.data.sampler import repeat_factors

WIDE = np.random.default_rng(0).random(53) < 0.7


def indices(batches):
    return [[key.index for key in batch] for batch in batches]


def test_every_image_comes_once_an_epoch():
    batches = TrainingBatches(WIDE, 4, epochs=3)
    for epoch in range(3):
        flat = [index for batch in batches.epoch_batches(epoch) for index in batch]
        assert sorted(flat) == list(range(53))
    assert len(list(batches)) == len(batches) == 3 * batches.steps_per_epoch == 3 * 14


def test_batches_are_wide_or_tall_but_for_the_last():
    for epoch in range(5):
        *full, _, _ = TrainingBatches(WIDE, 4, epochs=5).epoch_batches(epoch)
        for batch in full:
            assert len(batch) == 4
            assert len({bool(WIDE[index]) for index in batch}) == 1


def test_epochs_and_seeds_differ_and_repeat():
    batches = TrainingBatches(WIDE, 4, epochs=2, seed=1)
    assert batches.epoch_batches(0) != batches.epoch_batches(1)
    assert batches.epoch_batches(0) == TrainingBatches(WIDE, 4, epochs=9, seed=1).epoch_batches(0)
    assert batches.epoch_batches(0) != TrainingBatches(WIDE, 4, epochs=2, seed=2).epoch_batches(0)


@pytest.mark.parametrize("start", [0, 1, 13, 14, 15, 40, 42])
def test_a_later_start_is_the_rest_of_the_same_sequence(start):
    whole = list(TrainingBatches(WIDE, 4, epochs=3))
    rest = TrainingBatches(WIDE, 4, epochs=3, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole) - start


@pytest.mark.parametrize("per_step", [8, 24])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_the_batches_of_a_step_do_not_depend_on_the_number_of_processes(processes, per_step):
    """14 batches of 53 images: the last step has fewer than some processes."""
    alone = TrainingBatches(WIDE, 4, epochs=2, per_step=per_step)
    of_alone, parts = iter(indices(alone)), []
    for process in range(processes):
        parts.append(TrainingBatches(WIDE, 4, 2, process=process, processes=processes, per_step=per_step))
        assert len(list(parts[-1])) == len(parts[-1]) and parts[-1].steps_per_epoch == alone.steps_per_epoch
    of_each = [iter(indices(part)) for part in parts]
    for step in range(2 * alone.steps_per_epoch):
        expected = [next(of_alone) for _ in range(alone.batches_of(step))]
        both = zip(parts, of_each, strict=True)
        dealt = [[next(one) for _ in range(part.batches_of(step))] for part, one in both]
        weights = [part.weight(step) for part in parts]
        mine = zip(dealt, weights, strict=True)
        counted = [batch for batches, weight in mine for batch in batches if weight]
        assert sorted(counted) == sorted(expected)
        # none is idle, for all take part in every step; who has none of its own learns nothing
        assert all(dealt) and all(batches[0] in expected for batches in dealt)
        total = sum(weight * len(batches) for batches, weight in zip(dealt, weights, strict=True))
        assert total / processes == pytest.approx(1)
        assert {weight for weight in weights if weight} == {processes / len(expected)}


def test_another_number_of_processes_goes_on_where_the_others_stopped():
    two = [TrainingBatches(WIDE, 4, epochs=3, process=p, processes=2, per_step=6) for p in range(2)]
    three = [
        TrainingBatches(WIDE, 4, epochs=3, process=p, processes=3, per_step=6, start=4) for p in range(3)
    ]
    done = [batch for part in two for batch in indices(part)[: sum(map(part.batches_of, range(4)))]]
    rest = [batch for part in three for batch in indices(part)]
    whole = indices(TrainingBatches(WIDE, 4, epochs=3))
    assert {tuple(batch) for batch in done + rest} == {tuple(batch) for batch in whole}
    assert [len(part) for part in three] == [len(indices(part)) for part in three]


def test_fewer_images_than_processes():
    parts = [TrainingBatches(WIDE[:2], 4, epochs=1, process=p, processes=5) for p in range(5)]
    assert [sorted(batch) for part in parts for batch in indices(part)] == [[0, 1]] * 5
    assert [part.weight(0) for part in parts] == [5, 0, 0, 0, 0]


def test_nothing_to_batch_is_an_error():
    with pytest.raises(ValueError, match="batches of 4 from 0 images"):
        TrainingBatches(WIDE[:0], 4, epochs=1)


def test_steps_of_several_batches():
    """53 images in batches of 4 are 14 batches, in steps of 4 batches 4, whose last has two."""
    batches = TrainingBatches(WIDE, 4, epochs=3, per_step=4)
    assert (
        batches.steps_per_epoch == 4 and [batches.batches_of(step) for step in range(8)] == [4, 4, 4, 2] * 2
    )
    whole = indices(batches)
    assert whole == indices(TrainingBatches(WIDE, 4, epochs=3)) and len(batches) == len(whole) == 42
    for start in (1, 3, 4, 7, 11):
        rest = TrainingBatches(WIDE, 4, epochs=3, per_step=4, start=start)
        skipped = sum(batches.batches_of(step) for step in range(start))
        assert indices(rest) == whole[skipped:] and len(rest) == 42 - skipped


def test_images_are_drawn_by_their_shares():
    shares = np.ones(53)
    shares[:3] = 5.5
    batches = TrainingBatches(WIDE, 4, epochs=40, shares=shares)
    epochs = [np.concatenate(batches.epoch_batches(epoch)) for epoch in range(40)]
    drawn = [np.bincount(epoch, minlength=53) for epoch in epochs]
    expected = 53 * shares / shares.sum()
    for counts in drawn:
        assert counts.sum() == 53
        assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    assert np.abs(np.mean(drawn, axis=0) - expected).max() < 0.35
    assert batches.epoch_batches(7) == TrainingBatches(WIDE, 4, epochs=9, shares=shares).epoch_batches(7)


def test_repeat_factors_are_those_of_the_paper():
    """All four images have class 0, one has class 1, twice; a box that is not counted counts for none."""
    labels = np.array([0, 1, 1, 0, 0, -1, 0])
    factors = repeat_factors(labels, np.array([0, 3, 4, 6, 7]), 0.5)
    assert factors.tolist() == pytest.approx([2**0.5, 1, 1, 1])
    assert repeat_factors(np.zeros(0, int), np.array([0, 0, 0]), 0.5).tolist() == [1, 1]
