import json

import pytest

from benchmarks.compare import compare, verdict


def timing(median, low, high):
    return {"median_ms": median, "quartiles_ms": [low, high]}


def write(path, detect, training, torch="2.13.0"):
    row = {
        "name": "r50",
        "inference": [{"batch": 1, "ours": detect}],
        "training": {"batch": 2, "ours": training},
    }
    content = {
        "machine": {"name": "cpu", "torch": torch},
        "settings": {"size": [800, 1333], "precision": "float32", "mode": "eager"},
        "recipes": [row, {"name": "r101", "error": "out of memory"}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (timing(102, 101, 103), "same"),  # too small a change, however steady
        (timing(110, 104, 116), "same"),  # the middle halves overlap
        (timing(110, 107, 112), "slower"),
        (timing(90, 88, 92), "faster"),
    ],
)
def test_a_change_counts_when_it_is_large_and_clear(new, expected):
    assert verdict(timing(100, 95, 105), new) == expected


def test_the_table_has_the_worst_first(tmp_path):
    before = write(tmp_path / "a.json", timing(100, 99, 101), timing(400, 390, 410))
    after = write(tmp_path / "b.json", timing(80, 79, 81), timing(500, 490, 510))
    lines = compare(before, after).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| r50 | training, batch 2 | 400 | 500 | +25.0% | slower |"
    assert lines[3] == "| r50 | detect, batch 1 | 100 | 80 | -20.0% | faster |"


def test_different_conditions_are_warned_of(tmp_path):
    before = write(tmp_path / "a.json", timing(100, 99, 101), timing(1, 1, 1))
    after = write(tmp_path / "b.json", timing(100, 99, 101), timing(1, 1, 1), torch="2.14.0")
    assert "Warning: torch differ: 2.13.0 and 2.14.0" in compare(before, after)


def test_results_that_share_nothing_say_so(tmp_path):
    before = write(tmp_path / "a.json", timing(1, 1, 1), timing(1, 1, 1))
    after = tmp_path / "b.json"
    after.write_text(before.read_text().replace('"r50"', '"other"'))
    assert "share no measurement" in compare(before, after)
