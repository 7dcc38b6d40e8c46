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


def test_results_that_share_nothing_are_an_error(tmp_path):
    before = write(tmp_path / "a.json", timing(1, 1, 1), timing(1, 1, 1))
    after = tmp_path / "b.json"
    after.write_text(before.read_text().replace('"r50"', '"other"'))
    with pytest.raises(ValueError, match="share no measurement"):
        compare(before, after)


def test_columns_are_told_apart_by_the_folders_where_names_are_equal(tmp_path):
    for machine in ("cpu", "gpu"):
        (tmp_path / machine).mkdir()
        write(tmp_path / machine / "x.json", timing(1, 1, 1), timing(1, 1, 1))
    header = compare(tmp_path / "cpu" / "x.json", tmp_path / "gpu" / "x.json").splitlines()[0]
    assert header == "| recipe | measurement | cpu/x.json ms | gpu/x.json ms | change | verdict |"
    assert "| x.json ms | x.json ms |" in compare(*[tmp_path / "cpu" / "x.json"] * 2)


@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "[1]", "{}", '{"recipes": []}', '{"recipes": [{"inference": [3]}]}', "[" * 10_000],
)
def test_a_file_that_is_no_result_is_named(content, tmp_path):
    path = write(tmp_path / "a.json", timing(1, 1, 1), timing(1, 1, 1))
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ValueError, match=r"b\.json is not a result"):
        compare(path, tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        compare(tmp_path / "absent.json", path)
