"""Two actors of Ray Data find what `frcnn detect` finds."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from command import run
from tiny_coco import write_tiny

pytest.importorskip("ray")
pytest.importorskip("pyarrow")

import frcnn.ray
from frcnn.read_image import read_image
from frcnn.zoo.build import build


@pytest.fixture
def images(tmp_path):
    _, folder = write_tiny(tmp_path / "made", images=6)
    cv2.imwrite(str(folder / "a.jpg"), cv2.imread(str(folder / "0.png")))
    return folder


@pytest.fixture
def checkpoint(tmp_path, small_recipe, threads):
    threads(1)
    torch.manual_seed(0)
    path = tmp_path / "model.pth"
    recipe = replace(small_recipe, data=replace(small_recipe.data, size=(96, 64)))
    build(recipe, class_names=("bar", "square")).save(path)
    return path


def expected(images, checkpoint, out):
    assert run(
        "detect", images, "--model", checkpoint, "--output", out, "--min-score", 0.01, "--no-draw"
    ) in (0, 1)
    found = {}
    for entry in json.loads((out / "detections.json").read_text()):
        entry.pop("error", None)
        image = entry.pop("image")
        found[image] = {"width": None, "height": None, "detections": None, **entry}
    return found


def without_error(rows):
    errors = {row["path"]: row.pop("error") for row in rows}
    return {row.pop("path"): row for row in rows}, errors


def test_a_batch_of_files_or_of_arrays(images, checkpoint, tmp_path):
    paths = sorted(map(str, images.iterdir()))
    wanted = expected(images, checkpoint, tmp_path / "out")
    assert sum(len(entry["detections"]) for entry in wanted.values()) > 20
    detector = frcnn.ray.Detector(checkpoint, min_score=0.01)
    contents = [open(path, "rb").read() for path in paths]
    files = detector({"path": np.array(paths, object), "bytes": np.array(contents, object)})
    arrays = np.empty(len(paths), object)
    arrays[:] = [read_image(path)[..., ::-1] for path in paths]
    rgb = detector({"path": np.array(paths, object), "image": arrays})
    for table in (files, rgb):
        found, errors = without_error(table.to_pylist())
        assert found == wanted and set(errors.values()) == {None}
    assert detector({"bytes": np.array([contents[0]], object)}).num_columns == 4


def test_an_image_that_cannot_be_used_is_a_row_that_says_why(images, checkpoint):
    detector = frcnn.ray.Detector(str(checkpoint))
    rows = detector(
        {"path": np.array(["x.png"], object), "bytes": np.array([b"no image"], object)}
    ).to_pylist()
    assert rows[0]["detections"] is None and "x.png" in rows[0]["error"]
    with pytest.raises(ValueError, match=r"'bytes' or 'image', not only path"):
        detector({"path": np.array(["x.png"], object)})
    with pytest.raises(ValueError, match="min_score=2"):
        frcnn.ray.Detector(str(checkpoint), min_score=2)


def test_two_actors_find_what_the_command_finds(images, checkpoint, tmp_path, monkeypatch):
    import ray

    (images / "bad.png").write_text("no image")
    wanted = expected(images, checkpoint, tmp_path / "out")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        files = ray.data.read_binary_files(str(images), include_paths=True, override_num_blocks=4)
        found = files.map_batches(
            frcnn.ray.Detector,
            fn_constructor_args=[checkpoint],
            fn_constructor_kwargs={"min_score": 0.01},
            batch_size=2,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        found.write_parquet(str(tmp_path / "found"))
        rows = ray.data.read_parquet(str(tmp_path / "found")).take_all()
    finally:
        ray.shutdown()
    found, errors = without_error(rows)
    assert json.loads(json.dumps(found, default=np.ndarray.tolist)) == wanted
    bad = str(images / "bad.png")
    assert bad in errors.pop(bad) and set(errors.values()) == {None}
