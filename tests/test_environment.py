"""`frcnn env`: which packages it lists."""

from __future__ import annotations

import sys

import pytest

from frcnn import environment

REQUIRED = [
    "torch>=2.10",
    "numpy>=2",
    'no-such-reader>=2; python_version < "3.11"',
    'no-such-plotter>=1; extra == "plots"',
    'no-such-checker>=1; extra == "test"',
]


@pytest.mark.parametrize(("python", "needed"), [((3, 10), True), ((3, 11), False), ((3, 14), False)])
def test_a_package_that_only_older_pythons_need_is_missed_there_only(python, needed, monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda package: REQUIRED)
    monkeypatch.setattr(sys, "version_info", (*python, 0, "final", 0))
    rows = dict(environment._packages())
    assert rows.pop("no-such-reader", None) == ("missing" if needed else None)
    assert rows.pop("no-such-plotter") == "missing (extra plots: pip install no-such-plotter)"
    assert rows.keys() == {"numpy"}
