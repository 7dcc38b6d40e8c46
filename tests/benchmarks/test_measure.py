import time

import pytest
import torch

from benchmarks.measure import STATUS, interleave, peak_bytes, percentile, reset_peak, resident_bytes, summary


def test_summary_is_of_the_median_iteration():
    found = summary([0.1, 0.2, 0.3, 0.4, 10.0], images=8)
    assert found["median_ms"] == pytest.approx(300)
    assert found["fps"] == pytest.approx(8 / 0.3)
    assert found["p95_ms"] == pytest.approx(10_000)
    assert found["quartiles_ms"] == pytest.approx([200, 400])
    assert found["samples"] == 5


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.05, 1), (0.5, 10), (0.95, 19), (1.0, 20)])
def test_percentile_is_a_value_of_the_list(share, expected):
    assert percentile(list(range(20, 0, -1)), share) == expected


def record(names, seconds=0.0):
    order = []

    def subject(name):
        def run():
            time.sleep(seconds)
            order.append(name)
            return float(len(order))

        return run

    return order, {name: subject(name) for name in names}


def test_subjects_take_turns_and_warm_up_is_not_kept():
    order, subjects = record("AB")
    seconds = interleave(subjects, budget=0.0, least=3, warm_up=2)
    assert "".join(order) == "AB" * 5
    assert seconds == {"A": [5.0, 7.0, 9.0], "B": [6.0, 8.0, 10.0]}


def test_rounds_end_with_the_budget_and_never_exceed_the_most():
    order, subjects = record("A", seconds=0.02)
    interleave(subjects, budget=0.1, least=1, warm_up=0)
    assert 2 <= len(order) <= 6
    order, subjects = record("A")
    interleave(subjects, budget=60.0, least=1, most=7, warm_up=0)
    assert len(order) == 7


@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
def test_peak_sees_memory_that_is_already_freed():
    cpu, before = torch.device("cpu"), resident_bytes()
    reset_peak(cpu)
    low = peak_bytes(cpu, before)
    torch.ones(64 << 18)  # 64 MB
    high = peak_bytes(cpu, before)
    assert 60e6 < high - low < 90e6
    reset_peak(cpu)
    assert peak_bytes(cpu, before) < high - 50e6
