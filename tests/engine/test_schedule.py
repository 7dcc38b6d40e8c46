"""The learning rate of every step."""

from dataclasses import replace
from itertools import pairwise

import pytest

from frcnn.config import ScheduleConfig
from frcnn.engine.schedule import learning_rate, with_epochs

ONE_X = ScheduleConfig()


def test_warm_up_rises_linearly_from_the_factor():
    rates = [learning_rate(i, 1000, 16, ONE_X) for i in range(501)]
    assert rates[0] == pytest.approx(0.02 * 0.001)
    assert rates[250] == pytest.approx(0.02 * (0.001 + 0.999 / 2))
    assert rates[500] == 0.02
    steps = [b - a for a, b in pairwise(rates)]
    assert steps == pytest.approx([0.02 * 0.999 / 500] * 500)


@pytest.mark.parametrize(("epoch", "rate"), [(1, 0.02), (7, 0.02), (8, 0.002), (10, 0.002), (11, 0.0002)])
def test_the_rate_falls_after_the_decay_epochs(epoch, rate):
    assert learning_rate(epoch * 1000, 1000, 16, ONE_X) == pytest.approx(rate)
    assert learning_rate(epoch * 1000 + 999, 1000, 16, ONE_X) == pytest.approx(rate)


def test_the_rate_follows_the_images_per_step():
    assert learning_rate(5000, 1000, 64, ONE_X) == pytest.approx(0.08)
    assert learning_rate(5000, 1000, 2, ONE_X) == pytest.approx(0.0025)


def test_other_epochs_move_the_decays_in_proportion():
    assert with_epochs(ONE_X, 24).decay_epochs == (16, 22)
    assert with_epochs(ONE_X, 6).decay_epochs == (4, 6)
    assert with_epochs(ONE_X, 12) == ONE_X
    assert with_epochs(replace(ONE_X, decay_epochs=(1, 11)), 2).decay_epochs == (
        1,
        2,
    )  # never before the start
    with pytest.raises(ValueError, match="at least one epoch"):
        with_epochs(ONE_X, 0)


def test_the_rate_falls_as_half_a_cosine():
    schedule = ScheduleConfig(decay_shape="cosine", epochs=4, warmup_iterations=10)
    rates = [learning_rate(i, 100, 16, schedule) for i in range(400)]
    assert rates[200] == pytest.approx(0.01) and rates[100] == pytest.approx(0.02 * (1 + 0.5**0.5) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:])) and 0 < rates[-1] < 1e-6
    assert rates[0] == pytest.approx(0.02 * 0.001)
