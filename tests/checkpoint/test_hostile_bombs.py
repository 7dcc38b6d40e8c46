"""Small files made to crash, hang or fill the memory end in success or a CheckpointError, soon."""

from __future__ import annotations

import os
from functools import partial

import pytest
from bombs import all_bombs
from children import failures

import frcnn
from frcnn.checkpoint.convert import convert
from frcnn.checkpoint.load import CheckpointError, load_checkpoint, read_checkpoint
from frcnn.checkpoint.run_state import read_training_state
from frcnn.zoo.build import load

QUICK = 150_000
"""Bytes; the short form leaves larger bombs out, which take up to a second each, but for these:"""
LARGE = {
    "deep tuple as key",
    "deep tuple as element",
    "deep tuple as storage's key",
    "deep tuple as module",
    "copied names",
    "copied lists",
    "millions of sets",
    "a million class names",
}


@pytest.mark.stress
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_bombs_end_in_a_checkpoint_error(tmp_path, small_recipe, stress, record_property):
    model = frcnn.build(small_recipe)

    def defuse(ending, make):
        path = tmp_path / f"bomb{ending}"
        path.write_bytes(make())
        checkpoint = read_checkpoint(path)  # where this raises, so do the others
        for use in (
            lambda: load_checkpoint(model, checkpoint),
            lambda: load(path),
            lambda: convert(path, tmp_path / "converted.safetensors"),
        ):
            try:
                use()
            except CheckpointError as error:
                last = error
        raise last  # its text is looked at; no bomb fits the model

    def resume(ending, make):
        path = tmp_path / f"bomb{ending}"
        path.write_bytes(make())
        read_training_state(path)

    bombs = all_bombs()
    if not stress:
        assert bombs.keys() >= LARGE
        bombs = {title: bomb for title, bomb in bombs.items() if title in LARGE or len(bomb[1]()) < QUICK}
    cases = {title: partial(defuse, *bomb) for title, bomb in bombs.items()}
    resumed = [*bombs][:: 1 if stress else 3]  # a process each
    cases |= {f"{title}, resumed": partial(resume, *bombs[title]) for title in resumed}
    assert failures(cases) == {}
    record_property("tried", f"{len(bombs)} bombs, each loaded, built and converted, {len(resumed)} resumed")
