"""Files with random damage end in success or a CheckpointError, in every format."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from children import failures
from safetensors.torch import save

import frcnn
from frcnn.checkpoint.load import load_checkpoint, read_checkpoint
from frcnn.checkpoint.plain import to_plain
from frcnn.checkpoint.run_state import FORMAT, random_state, read_training_state
from frcnn.checkpoint.save import save_checkpoint
from frcnn.checkpoint.torch_file import read_torch_file
from frcnn.zoo.build import load

FORMATS = ("zip", "zip without checksums", "legacy", "plain", "safetensors", "training state")


def genuine(form: str, path) -> None:
    """A small checkpoint with all that they hold: weights, metadata, an optimizer's state, arrays."""
    weights = {
        "rpn.weight": torch.arange(12.0).view(3, 4),
        "rpn.steps": torch.tensor(3),
        "half": torch.ones(4).half(),
    }
    meta = {"classes": ("cat", "dog"), "recipe": to_plain(frcnn.recipe("faster_rcnn_r50_fpn_1x_coco"))}
    arrays = {name: value.numpy() for name, value in weights.items()}
    if form == "training state":
        training = {"format": FORMAT, "random_states": [random_state()], "history": [{"epoch": 1, "x": 0.5}]}
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(3, 4)}}, "param_groups": [{"params": [0]}]}
        torch.serialization.set_crc32_options(False)
        content = {"state_dict": weights, "meta": meta, "optimizer": optimizer, "training": training}
        save_checkpoint(path, content)
        torch.serialization.set_crc32_options(True)
    elif form == "safetensors":
        path.write_bytes(save(weights, metadata={"frcnn": json.dumps(meta)}))
    elif form == "plain":
        path.write_bytes(
            pickle.dumps({"model": arrays, "__author__": "x", "epoch": np.float64(3)}, protocol=4)
        )
    else:
        content = {
            "meta": meta,
            "state_dict": OrderedDict(
                weights, tied=weights["rpn.weight"], view=weights["rpn.weight"][1:, ::2]
            ),
            "optimizer": {
                "state": {0: {"momentum": torch.ones(3), "step": np.int64(2)}},
                "hyper": [0.1, 1e-4, None],
            },
            "hub": {"loss": np.arange(4.0), "device": torch.device("cpu"), "range": range(3)},
        }
        torch.serialization.set_crc32_options(form == "zip")  # without, damage reaches what reads the pickle
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
        torch.serialization.set_crc32_options(True)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to three of: flip bits, set bytes, cut out, cut off, insert, repeat, move."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.choice((1, 1, 2, 4, 8, 64, 512)))
        piece = changed[start:end]
        what = chance.randrange(7)
        if what == 0:
            for index in range(start, end):
                changed[index] ^= 1 << chance.randrange(8)
        elif what == 1:
            changed[start:end] = bytes(
                [chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))]
            ) * len(piece)
        elif what == 2:
            del changed[start:end]
        elif what == 3 and chance.random() < 0.3:
            del changed[start:]
        elif what == 4:
            changed[start:start] = chance.randbytes(len(piece))
        elif what == 5:
            changed[start:start] = piece * chance.choice((1, 2, 50))
        else:
            to = chance.randrange(len(changed) + 1)
            changed[to : to + len(piece)] = piece
    return bytes(changed)


@pytest.mark.stress
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_a_checkpoint_error(form, tmp_path, small_recipe, stress, record_property):
    model = frcnn.build(small_recipe)
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    genuine(form, path)
    data, count = path.read_bytes(), 20_000 if stress else 200
    assert len(read_checkpoint(path).tensors) >= 3

    def use(seed):
        path.write_bytes(mutate(data, random.Random(seed)))
        if form == "training state":
            read_torch_file(path).whole()
            read_training_state(path)
        elif seed % 4:
            load_checkpoint(model, path)
        else:
            load(path)

    assert failures({str(seed): partial(use, seed) for seed in range(count)}) == {}
    record_property("tried", f"{count:,} mutations of a {form} checkpoint")
