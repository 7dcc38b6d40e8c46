"""Several runs of detection that share the images."""

import json

import cv2
import numpy as np
import pytest
from quarter_finder import Model

from frcnn import cli
from frcnn.engine.detect import detect
from frcnn.inference.sources import find_images


def entries(path):
    return {entry["image"]: entry for entry in json.loads(path.read_text())}


def test_shards_do_together_what_one_run_does(folder, out, tmp_path):
    for number in range(3):
        cv2.imwrite(str(folder / f"more{number}.png"), np.full((20, 20 + number, 3), 90, np.uint8))
    (folder / "bad.png").write_text("no image")
    whole = detect(Model(), [folder], out)
    for number in (3, 1, 2):
        result = detect(Model(), [folder], tmp_path / "parts", shard=(number, 3))
        assert result.lines.name == f"detections-{number}-of-3.jsonl"
        again = detect(Model(), [folder], tmp_path / "parts", shard=(number, 3), resume=True)
        assert again.resumed == len(entries(result.detections)) - len(result.failed)
    parts = [entries(tmp_path / "parts" / f"detections-{number}-of-3.json") for number in (1, 2, 3)]
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert {image: entry for part in parts for image, entry in part.items()} == entries(whole.detections)
    lines = b"".join(sorted((tmp_path / "parts").glob("*.jsonl"))[i].read_bytes() for i in range(3))
    images = [json.loads(line) for line in lines.splitlines()]
    assert {entry["image"] for entry in images if "image" in entry} == set(entries(whole.detections))
    drawn = [
        sorted(p.relative_to(root) for p in root.rglob("*.[jp][pn]g")) for root in (out, tmp_path / "parts")
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6
    assert len(find_images([tmp_path]).images) == 7  # the folders of results are left out


def test_a_shard_of_other_images_is_not_resumed(folder, out):
    detect(Model(), [folder], out, shard=(1, 2))
    cv2.imwrite(str(folder / "0.png"), np.full((20, 20, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="other settings"):
        detect(Model(), [folder], out, shard=(1, 2), resume=True)


@pytest.mark.parametrize("words", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_a_shard_that_is_none(folder, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["detect", str(folder), "--model", "small_r18_fpn", "--shard", words])
    assert caught.value.code == 2 and f"--shard {words}" in capsys.readouterr().err
