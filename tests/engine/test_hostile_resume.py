"""A last.pth whose checksum is right and whose content is not what training writes: refused, and named."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from frcnn.checkpoint.run_state import SUMMED, random_state, read_training_state, set_random_state
from frcnn.checkpoint.save import save_checkpoint
from frcnn.checkpoint.torch_file import CheckpointError
from frcnn.engine.train import train

NUMPY = "training.random_states.0.numpy"
WRONG = [
    ("meta", []),
    ("meta.iter", -1),
    ("meta.iter", True),
    ("meta.iter", 10**9),
    ("meta.recipe", "x"),
    ("meta.recipe", {5: [], None: "\x1b[2J"}),
    ("state_dict", {}),
    ("state_dict", {"roi_head.bbox_head.fc_cls.bias": 1}),
    ("state_dict.roi_head.bbox_head.fc_cls.bias", torch.ones(2)),
    ("optimizer", None),
    ("optimizer.state", [1]),
    ("optimizer.state", {0: {}}),
    ("optimizer.state", {10**6: {"momentum_buffer": torch.ones(1)}}),
    ("optimizer.state", {0: {"momentum_buffer": torch.ones(1)}}),
    ("optimizer.state", {0: {"momentum_buffer": "x"}}),
    ("training.settings", {"seed": "x" * 10_000}),
    ("training.data", 5),
    ("training.threads", "many"),
    ("training.random_states", []),
    ("training.random_states", [{}]),
    ("training.random_states.0.torch", torch.ones(5, dtype=torch.uint8)),
    ("training.random_states.0.python", [3, [1, 2, 3], None]),
    (NUMPY, ["MT19937", torch.ones(5, dtype=torch.int64), 0, 0, 0.0]),
    (NUMPY, ["MT19937", torch.ones(624, dtype=torch.int64), 10**6, 0, 0.0]),
    (NUMPY, ["MT19937", torch.ones(624, dtype=torch.int64), -5, 0, 0.0]),
    ("training.history", "x"),
    ("training.history", [{}]),
    ("training.history", [{"epoch": 1, "bbox_mAP": "high"}]),
    ("training.history", [{"epoch": 1, "bbox_mAP": float("nan")}]),
    ("training.history", [{"epoch": 1, "bbox_mAP": 0.5, "bbox_mAP_50": float("nan")}]),
    ("training.history", [{"epoch": 1, "bbox_mAP": 1e9}]),
    ("training.history", [{"epoch": 99, "bbox_mAP": 0.5}]),
    ("meta.epoch", "first"),
    ("training.history", [{"epoch": 1, "bbox_mAP": 0.5, "\x1b[2J": 0.5}]),
    ("training.bad_images", [[0]]),
    ("training.bad_images", [[10**6, 1, "x"]]),
    ("training.log", []),
    ("training.log", {"sums": {"loss": "x"}, "counts": {"loss": 1}}),
    ("training.log", {"sums": {"loss": float("inf")}, "counts": {"loss": 1}}),
    ("training.log", {"sums": {"loss": 1.0}, "counts": {"loss": 0}}),
    ("training.log", {"sums": {"loss": 1.0}, "counts": {}}),
    ("training.log", {"sums": {"loss": 1.0}, "counts": {"loss": 1}}),
    ("training.log", dict.fromkeys(("sums", "counts"), dict.fromkeys([*SUMMED, "\x1b[2J"], 1))),
    ("training.loss_scale", [0.0, 1]),
    ("optimizer.state", {}),
    ("state_dict.roi_head.bbox_head.fc_cls.bias", torch.full((3,), torch.nan)),
    ("state_dict.roi_head.bbox_head.fc_cls.bias", torch.ones(3, dtype=torch.float64)),
]


def test_content_that_training_never_writes_is_refused(recipe, tiny, tmp_path):
    run = tmp_path / "run"
    train(recipe, *tiny, work_dir=run)
    good = read_training_state(run / "last.pth")
    for place, value in WRONG:
        content = copy.deepcopy(good)
        *homes, name = re.split(r"\.(?!bbox_head|fc_cls|bias)", place)
        home = content
        for key in homes:
            home = home[int(key) if key.isdigit() else key]
        home[name] = value
        save_checkpoint(run / "last.pth", content)
        with pytest.raises(CheckpointError, match=re.escape(str(run / "last.pth"))) as caught:
            train(recipe, *tiny, work_dir=run, resume=True)
        said = str(caught.value)
        assert len(said) < 3000 and said.replace("\n", "").isprintable(), place
    save_checkpoint(run / "last.pth", good)
    train(recipe, *tiny, work_dir=run, resume=True)


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
def test_a_negative_count_or_mean_of_squares_is_refused(recipe, tiny, tmp_path, name):
    """AdamW divides by their roots: the first step would write NaN into every weight."""
    adamw = replace(recipe, schedule=replace(recipe.schedule, optimizer="adamw"))
    run = tmp_path / "run"
    train(adamw, *tiny, work_dir=run)
    content = read_training_state(run / "last.pth")
    content["optimizer"]["state"][0][name] -= 1e6
    save_checkpoint(run / "last.pth", content)
    with pytest.raises(CheckpointError, match=rf"optimizer\.state\.0\.{name} is negative"):
        train(adamw, *tiny, work_dir=run, resume=True)


def test_what_is_no_checkpoint_is_called_what_it_is(recipe, tiny, tmp_path):
    run = tmp_path / "run"
    train(recipe, *tiny, work_dir=run)
    good = read_training_state(run / "last.pth")
    with open(run / "last.pth", "wb") as file:
        pickle.dump({**good, "state_dict": {"weight": print}}, file)
    with pytest.raises(CheckpointError, match=r"last\.pth: it holds an object of builtins\.print, and"):
        train(recipe, *tiny, work_dir=run, resume=True)
    (run / "last.pth").unlink()
    (run / "last.pth").mkdir()
    with pytest.raises(CheckpointError, match=r"last\.pth: a folder, not a file"):
        train(recipe, *tiny, work_dir=run, resume=True)


def test_a_random_state_that_points_beyond_its_numbers_is_refused():
    """numpy takes it, and then reads memory that is not its own."""
    before = np.random.get_state()
    state = random_state()
    state["numpy"][2] = 10**6
    with pytest.raises(ValueError, match="624 numbers and goes on at 1000000"):
        set_random_state(state)
    assert np.random.get_state()[2] == before[2]
