"""The command line's choices, and a whole measurement in miniature."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import frcnn
from benchmarks import measure, ours, report, run
from benchmarks.exported import Exported
from benchmarks.inputs import make_images
from benchmarks.ours import Ours
from benchmarks.recipe import EXPORTED, OURS, PEER, TRAINING_BATCH, Conditions, measure_recipe
from benchmarks.work import STAGES
from benchmarks.worker import Worker, WorkerError
from frcnn.zoo.small import small_r18_fpn

R50 = "faster_rcnn_r50_fpn_1x_coco"


class InProcess:
    """A subject in this process, with a Worker's interface."""

    def __init__(self, subject, recipe):
        self.subject, self.recipe, self.calls = subject, recipe, []

    def call(self, method, **arguments):
        self.calls.append(method)
        if "recipe" in arguments:
            arguments["recipe"] = self.recipe
        result = getattr(self.subject, method)(**arguments)
        return json.loads(json.dumps(result))  # as a pipe would bring it

    def close(self):
        del self.subject

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class FakePeer:
    """Answers like the peer, from `clock`, in no time."""

    def __init__(self):
        self.loaded = None

    def load(self, **arguments):
        self.loaded = arguments
        return {"name": "torchvision 0", "torch": "0"}

    def take_images(self, file):
        assert Path(file).is_file()

    def start_training(self, boxes, labels):
        assert len(boxes) == len(labels) == TRAINING_BATCH

    def detect(self):
        return 2.0

    predict = train_step = detect

    def counts(self):
        return {"proposals": 1000.0, "detections": 50.0}

    def reset_peak(self):
        pass

    def peak_bytes(self):
        return 1000


def measured(recipe, tmp_path, peers=("float32",), size=(64, 96), batches=(1, 2), train=True, exports=()):
    files = {}
    for batch in {*batches, TRAINING_BATCH}:
        files[batch] = tmp_path / f"{batch}.npy"
        np.save(files[batch], make_images(batch, *size)[0])
    conditions = Conditions(
        "cpu",
        "float32",
        "eager",
        torch.get_num_threads(),
        size,
        files,
        batches,
        0.0,
        2,
        train,
        exports=exports,
    )
    started = []

    def start(module):
        worker = InProcess({OURS: Ours, PEER: FakePeer, EXPORTED: Exported}[module](), recipe)
        started.append(worker)
        return worker

    said = []
    result = measure_recipe(recipe, conditions, peers, start, None, tmp_path, said.append)
    return result, started, said


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A slim recipe under a zoo recipe's name, so that the published figures join; quick rates."""
    recipe = replace(small_r18_fpn(), name=R50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "matrix_rate", partial(measure.matrix_rate, size=256))
        patch.setattr(ours, "copy_bandwidth", partial(measure.copy_bandwidth, megabytes=4))
        return measured(recipe, tmp_path_factory.mktemp("run"))


def test_everything_is_measured(result):
    found, _, said = result
    assert [timing["batch"] for timing in found["inference"]] == [1, 2]
    for part in (*found["inference"], found["from_images"], found["training"]):
        assert part["ours"]["median_ms"] > 0 and part["ours"]["samples"] == 2
        assert part["torchvision 0 float32"]["median_ms"] == 2000
    assert [stage["stage"] for stage in found["stages"]] == list(STAGES)
    assert all(stage["ms"] > 0 and stage["share_of_floor"] > 0 for stage in found["stages"])
    assert found["rates"]["matrix"] > 1e9 and found["rates"]["copy"] > 1e8
    # NMS may decide one pair at its threshold otherwise
    assert found["drift"]["matched"] > 0.95 and found["drift"]["max_score_drift"] < 1e-4
    assert said == ["weights", "batch 1", "batch 2", "from images", "stages", "training"]


def test_generated_weights_give_proposals_and_detections(result):
    counts = result[0]["counts"]["ours"]
    assert counts["proposals"] > 20
    assert sum(counts["proposals_per_level"]) == pytest.approx(counts["proposals"])
    assert 5 <= counts["detections"] <= 100


def test_the_peer_gets_our_weights_and_architecture(result):
    peer = next(worker for worker in result[1] if isinstance(getattr(worker, "subject", None), FakePeer))
    assert peer.subject.loaded["weights"].endswith("weights.pt")
    assert peer.subject.loaded["depth"] == 18 and peer.subject.loaded["num_classes"] == 80


def test_the_result_is_written_as_json_markdown_and_plot(result, tmp_path, monkeypatch):
    whole = {
        "date": "2026-01-02",
        "machine": run.machine.describe(torch.device("cpu"), 2),
        "settings": {
            "precision": "float32",
            "mode": "eager",
            "size": [64, 96],
            "batches": [1, 2],
            "quick": True,
        },
        "images": "generated",
        "weights": "generated",
        "peer": "a fake",
        "recipes": [result[0]],
        "start_up": {"torch": 1.0, "frcnn": 0.001, "detector": 0.1, "first_prediction": 0.9},
    }
    file = run.write(whole, tmp_path / "out")
    assert file.name == "float32-eager-quick.json"
    assert json.loads(file.read_text())["recipes"][0]["name"] == R50
    assert "21.4" in file.with_suffix(".md").read_text()
    assert file.with_suffix(".png").stat().st_size > 5000
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an extra that a plain install lacks
    file = run.write(whole, tmp_path / "plain")
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".json", ".md"]


def test_a_caffe_recipe_runs_without_peer_and_training_can_be_left_out(tmp_path, monkeypatch):
    recipe = small_r18_fpn()
    caffe = replace(recipe.model.backbone, style="caffe")
    recipe = replace(recipe, model=replace(recipe.model, backbone=caffe))
    monkeypatch.setattr(Ours, "stages", lambda self, repeats: {"rates": {}, "stages": []})
    found, started, said = measured(recipe, tmp_path, batches=(1,), train=False)
    assert set(found["counts"]) == {"ours"}
    assert "training" not in found and "training" not in said
    assert len(started) == 2


def test_exported_files_are_measured_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(Ours, "stages", lambda self, repeats: {"rates": {}, "stages": []})
    found, _, said = measured(
        small_r18_fpn(), tmp_path, peers=(), batches=(1,), train=False, exports=("onnx",)
    )
    assert said == ["weights", "writing onnx", "batch 1", "from images", "stages"]
    for part in (found["inference"][0], found["from_images"]):
        assert all(part[name]["median_ms"] > 0 for name in ("ours", "onnx"))
    settings = {"batches": [1], "size": [64, 96]}
    assert "onnx: " in report._notes([found], {"settings": settings, "recipes": [found]})
    detections = [found["counts"][name]["detections"] for name in ("ours", "onnx")]
    assert min(detections) > 5 and max(detections) - min(detections) <= 1


@pytest.mark.parametrize(
    "settings",
    [
        run.Settings(mode="export:coreml"),
        run.Settings(mode="export:"),
        run.Settings(mode="export:onnx,tensorrt"),
        run.Settings(mode="export:onnx", precision="bf16"),
        run.Settings(mode="export:onnx", batch=(1, 2)),
        run.Settings(mode="fast"),
    ],
)
def test_modes_that_are_none(settings):
    with pytest.raises(run.UsageError, match=f"--mode {settings.mode}: .*(onnx|export)"):
        run.chosen_mode(settings)
    assert run.chosen_mode(run.Settings(mode="export:aoti,onnx")) == ("eager", ("aoti", "onnx"))
    assert run.chosen_mode(run.Settings(mode="graph")) == ("graph", ())


def test_the_plain_process_trains_and_the_fast_one_is_closed_before(result):
    plain, fast = [
        worker for worker in result[1] if "optimize" in worker.calls or "calibrate" in worker.calls
    ]
    assert "train_step" in plain.calls and "train_step" not in fast.calls
    assert not hasattr(fast, "subject")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (run.Settings(device="cpu", mode="graph"), "--mode graph captures CUDA graphs"),
        (run.Settings(device="cpu", precision="tf32"), "--precision tf32"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(settings, message):
    with pytest.raises(run.UsageError, match=message):
        run.chosen_device(settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused_with_the_remedy():
    with pytest.raises(run.UsageError, match="no GPU here; use --device cpu"):
        run.chosen_device(run.Settings(device="cuda"))
    assert run.chosen_device(run.Settings()).type == "cpu"


def test_unknown_recipes_are_refused_with_a_suggestion():
    with pytest.raises(run.UsageError, match="faster_rcnn_r50_fpn_1x_coco"):
        run.chosen_recipes(run.Settings(recipes=("faster_rcnn_r50_fpn_1x_coko",)))
    assert len(run.chosen_recipes(run.Settings())) == 15


def test_a_missing_peer_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    precisions, _, says = run.chosen_peer(run.Settings())
    assert precisions == [] and "--peer-python" in says
    with pytest.raises(run.UsageError, match="nowhere"):
        run.chosen_peer(run.Settings(peer_python=tmp_path / "nowhere"))


def test_the_peer_runs_in_float32_and_in_our_precision(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.26.0 2.11.0\n")
    python.chmod(0o755)
    precisions, _, says = run.chosen_peer(run.Settings(peer_python=python, precision="bf16"))
    assert precisions == ["float32", "bfloat16"] and "torchvision 0.26.0 (torch 2.11.0)" in says
    assert run.chosen_peer(run.Settings(peer_python=python))[0] == ["float32"]


def test_published_checkpoints_are_found_in_a_folder_by_their_names(tmp_path):
    recipe = frcnn.recipe(R50)
    assert run.checkpoint(recipe, None) is None and run.checkpoint(recipe, "coco") == "coco"
    with pytest.raises(run.UsageError, match=r"047c8118\.pth is not there.*https://"):
        run.checkpoint(recipe, str(tmp_path))
    file = tmp_path / "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth"
    file.touch()
    assert run.checkpoint(recipe, str(tmp_path)) == str(file.resolve())


def test_a_recipe_of_the_zoo_runs_in_its_own_process(tmp_path):
    """The grouped backbone, reduced to what its worker's protocol carries; all 15 run in `run.py --quick`."""
    file = tmp_path / "images.npy"
    np.save(file, make_images(1, 64, 96)[0])
    with Worker(OURS, threads=1) as worker:
        loaded = worker.call(
            "load",
            recipe="faster_rcnn_x101_32x4d_fpn_2x_coco",
            weights=None,
            size=(64, 96),
            device="cpu",
            precision="float32",
            mode="eager",
            threads=1,
        )
        assert loaded["parameters"] == pytest.approx(60.2e6, rel=0.01)
        worker.call("take_images", file=str(file))
        worker.call("calibrate")
        worker.call("optimize")
        assert 0 < worker.call("detect") < 60
        assert worker.call("counts")["detections"] >= 5


def test_box_ap_is_that_of_the_fast_model(tmp_path):
    """On images whose only annotation is the fast detector's own best detection."""
    recipe = small_r18_fpn()
    file = tmp_path / "images.npy"
    np.save(file, make_images(1, 120, 160)[0])
    subject = Ours()
    subject.load(recipe, None, (240, 320), "cpu", "float32", "eager", torch.get_num_threads())
    subject.take_images(str(file))
    subject.calibrate()
    subject.optimize()

    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    cv2.imwrite(str(folder / "val2017" / "1.png"), np.load(file)[0])
    best = subject.fast.predict(np.load(file)[0], size=recipe.data.size)
    x1, y1, x2, y2 = best.boxes[0].tolist()
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 120, "width": 160}],
        "categories": [{"id": 2 * label, "name": f"class {label}"} for label in range(80)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2 * int(best.labels[0]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
        ],
    }
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    assert subject.box_ap(str(folder)) == pytest.approx(100)


def small_settings(monkeypatch, tmp_path, measure):
    """Settings of a run of two recipes whose measurement is `measure(recipe)`."""
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(run, "start_up", lambda threads: {})
    monkeypatch.setattr(run, "measure_recipe", lambda recipe, *_: measure(recipe))
    recipes = (R50, "faster_rcnn_r101_fpn_1x_coco")
    return run.Settings(device="cpu", quick=True, size=(64, 96), recipes=recipes, output=tmp_path / "out")


def test_a_recipe_that_fails_does_not_end_the_run(result, monkeypatch, tmp_path, capsys):
    def measure(recipe):
        if recipe.name == R50:
            raise WorkerError("out of memory")
        return {**result[0], "name": recipe.name}

    file = run.main(small_settings(monkeypatch, tmp_path, measure))
    rows = json.loads(file.read_text())["recipes"]
    assert rows[0] == {"name": R50, "error": "out of memory"} and "inference" in rows[1]
    assert "## Failed" in capsys.readouterr().out


def test_a_stopped_run_keeps_what_was_done(result, monkeypatch, tmp_path):
    def measure(recipe):
        if recipe.name != R50:
            raise KeyboardInterrupt
        return result[0]

    file = run.main(small_settings(monkeypatch, tmp_path, measure))
    assert [row["name"] for row in json.loads(file.read_text())["recipes"]] == [R50]


def test_compare_prints_a_table_and_measures_nothing(result, monkeypatch, tmp_path, capsys):
    settings = small_settings(monkeypatch, tmp_path, lambda recipe: {**result[0], "name": recipe.name})
    file = run.main(settings)
    capsys.readouterr()
    assert run.main(replace(settings, compare=(file, file))) is None
    out = capsys.readouterr().out
    assert out.count("+0.0% | same") == 2 * 4  # two batches, from images, training


@pytest.mark.parametrize("content", [None, "garbage"])
def test_what_cannot_be_compared_is_one_message(content, tmp_path):
    """As users see it: no traceback."""
    file = tmp_path / "b.json"
    if content is not None:
        file.write_text(content)
    command = [sys.executable, run.__file__, "--compare", file, file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("--compare: ") and "b.json" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [{"batch": (0,)}, {"size": (0, 0)}, {"threads": 0}, {"seconds": -1.0}, {"seconds": float("nan")}]
)
def test_settings_are_checked_before_anything_is_measured(wrong, monkeypatch):
    monkeypatch.setattr(run.machine, "describe", None)
    with pytest.raises(run.UsageError, match=f"--{next(iter(wrong))}"):
        run.main(run.Settings(**wrong))
