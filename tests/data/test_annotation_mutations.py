"""Seeded mutations of an annotation file, of its bytes or its values: each loads soundly or is refused."""

from __future__ import annotations

import copy
import random
import re

import pytest
from tiny_coco import perfect

from frcnn.data import DatasetError, load_dataset
from frcnn.engine.evaluate import score

NASTY = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        0.5,
        2**24,
        2**24 + 1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**30,
        1e39,
        float("nan"),
        float("inf"),
        "0",
    ),
    *("", "1", "\0", "\ud800", "..", "/", "x" * 5000, [], {}, [1, 2, 3, 4], [[]], {"id": 1}, "@1e400"),
]


def mutated(rng: random.Random, valid: dict, data: bytes) -> dict | bytes:
    """The valid file with one to three changes, of its bytes or of its values."""
    changes = rng.choice([1, 1, 1, 2, 3])
    if rng.random() < 0.3:
        spoiled = bytearray(data)
        for _ in range(changes):
            at = rng.randrange(len(spoiled))
            what = rng.randrange(4)
            if what == 0:
                spoiled[at] = rng.randrange(256)
            elif what == 1:
                del spoiled[at : at + rng.randint(1, 40)]
            elif what == 2:
                spoiled[at:at] = rng.choice([b"-", b"e", b"9", b"0", b",", b'"', b"[", b"}", b"\\u", b"1e"])
            else:
                spoiled[at:at] = spoiled[at : at + rng.randint(1, 200)]
        return bytes(spoiled)
    content = copy.deepcopy(valid)
    for _ in range(changes):
        node, key = content, rng.choice(list(content))
        while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.9:
            node = node[key]
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if type(node[key]) is int and rng.random() < 0.7:
            node[key] *= rng.choice([-1, 0, 1.0, 0.1, 2, 1e3, 1e30])
        elif rng.random() < 0.2:
            del node[key]
        elif isinstance(node, list) and rng.random() < 0.2:
            node.append(node[key])
        else:
            node[key] = copy.deepcopy(rng.choice(NASTY))
        if not content:
            return content
    return content


@pytest.mark.stress
def test_mutations_load_or_are_refused(folder, valid, write, stress, record_property):
    count = 20_000 if stress else 200
    rng = random.Random(0)
    data = (folder / "annotations.json").read_bytes()
    loaded = 0
    for _ in range(count):
        path = write(mutated(rng, valid, data))
        try:
            dataset = load_dataset(path, folder / "images")
            training = dataset.for_training(min_side=1)
        except DatasetError as error:
            assert re.search(r"spoiled\.json|no such image", str(error)) and len(str(error)) < 3000
            continue
        loaded += 1
        assert 0 <= score(dataset, perfect(dataset)).metrics["bbox_AR_100"] <= 1
        assert abs(dataset.boxes.sum(dtype="float64")) < 1e12
        assert training.box_counts().min() > 0
    assert count / 10 < loaded < count
    record_property("tried", f"{count:,} mutations of an annotation file, {loaded:,} of which load")
