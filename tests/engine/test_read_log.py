"""Logs of training in every format that `frcnn compare` and `frcnn plot` read."""

import json

import pytest

from frcnn.checkpoint.plain import to_plain
from frcnn.engine.read_log import read_run
from frcnn.zoo.recipes import recipe


def write(path, *lines, rest=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return path


def train(epoch, step, loss, **more):
    return {"mode": "train", "epoch": epoch, "iter": step, "lr": 0.01, "loss": loss, **more}


def val(epoch, step, ap, **more):
    return {"mode": "val", "epoch": epoch, "iter": step, "lr": 0.01, "bbox_mAP": ap, **more}


OURS = (
    train(1, 5, 3.0, acc=90.0),
    {"mode": "bad_image", "step": 6, "image": "a.png", "reason": "cut short"},
    val(1, 10, 0.2, bbox_mAP_50=0.5, val_loss=2.0),
    train(2, 5, 1.0),
    train(2, 10, float("nan")),
    val(2, 10, 0.1, bbox_mAP_50=0.4, val_loss=1.5),
)


def test_a_log_of_ours_as_an_interrupted_run_leaves_it(tmp_path):
    run = read_run(write(tmp_path / "log.jsonl", *OURS, rest='{"mode": "train", "ep'), "mine")
    assert run.name == "mine" and run.files == [str(tmp_path / "log.jsonl")]
    assert run.curves["loss"] == [(0.5, 3.0), (1.5, 1.0)]
    assert run.curves["bbox_mAP"] == [(1, 0.2), (2, 0.1)] and run.curves["val_loss"] == [(1, 2.0), (2, 1.5)]
    assert run.figures == {
        "epochs": 2,
        "steps": 20,
        "bbox_mAP": 0.1,
        "best bbox_mAP": 0.2,
        "bbox_mAP_50": 0.4,
        "best bbox_mAP_50": 0.5,
    }


def test_a_log_of_mmdetection_2(tmp_path):
    """Where it evaluates, iter counts images, of which there may be more than steps."""
    log = write(
        tmp_path / "20200130_204655.log.json",
        {"env_info": "sys.platform: linux", "seed": None, "mmdet_version": "2.0"},
        train(1, 50, 2.0, memory=4000, loss_rpn_cls=0.5),
        train(1, 100, 1.0),
        val(1, 5000, 0.2, bbox_mAP_copypaste="0.200 0.300"),
        train(2, 50, 0.5),
    )
    run = read_run(log, "theirs")
    assert run.curves["loss"] == [(0.5, 2.0), (1, 1.0), (1.5, 0.5)] and run.curves["bbox_mAP"] == [(1, 0.2)]
    assert (run.figures["epochs"], run.figures["steps"]) == (1.5, 150)


def scalars(**more):
    return [
        {"lr": 0.01, "loss": 2.0, "time": 0.1, "step": 50, **more},
        {"lr": 0.01, "loss": 1.0, "time": 0.1, "step": 100, **more},
        {"coco/bbox_mAP": 0.2, "coco/bbox_mAP_50": 0.5, "time": 0.1, "step": 1},
        {"lr": 0.01, "loss": 0.5, "time": 0.1, "step": 200, **({"epoch": 2} if more else {})},
        {"coco/bbox_mAP": 0.3, "coco/bbox_mAP_50": 0.6, "time": 0.1, "step": 2},
    ]


@pytest.mark.parametrize("told", [{}, {"epoch": 1}], ids=["without epochs", "with epochs"])
def test_a_log_of_mmdetection_3(tmp_path, told):
    write(tmp_path / "20230101_000000" / "vis_data" / "scalars.json", {"loss": 9.0, "step": 1})
    write(tmp_path / "20230102_000000" / "vis_data" / "scalars.json", *scalars(**told))
    run = read_run(tmp_path, "theirs")  # the newest of the folder's
    assert run.curves["loss"] == [(0.5, 2.0), (1, 1.0), (2, 0.5)]
    assert run.curves["bbox_mAP"] == [(1, 0.2), (2, 0.3)] and run.figures["best bbox_mAP_50"] == 0.6
    assert run.figures["steps"] == 200


def test_a_run_knows_its_settings(tmp_path):
    write(tmp_path / "log.jsonl", *OURS)
    plain = json.dumps(to_plain(recipe("small_r18_fpn")))
    (tmp_path / "recipe.json").write_text(plain)
    run = read_run(tmp_path, "mine")
    assert run.settings["schedule.epochs"] == 12 and run.settings["model.rpn.scales"] == [4.0]
    assert run.files == [str(tmp_path / "log.jsonl"), str(tmp_path / "recipe.json")]
    (tmp_path / "recipe.json").write_text(plain[:-9])
    with pytest.raises(ValueError, match=r"recipe\.json is not a readable recipe"):
        read_run(tmp_path, "mine")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON\n",
        '{"other": 1}\n',
        "[1, 2]\n",
        '{"mode": "train", "epoch": "1", "iter": 2, "loss": 3}\n',
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "some.txt").write_text(text)
    with pytest.raises(ValueError, match=r"some\.txt is no training log: known are"):
        read_run(tmp_path / "some.txt", "x")


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no training log, such as log\.jsonl"):
        read_run(tmp_path, "x")


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"curves": {"loss": 3}, "figures": {}, "settings": {}},
        {"curves": []},
        {"curves": [], "figures": {}, "settings": {}},
        {"curves": {"loss": [[1, "2"]]}, "figures": {}, "settings": {}},
        {"curves": {"loss": [[1, float("nan")]]}, "figures": {}, "settings": {}},
        {"curves": {"loss": [[1, 1e308]]}, "figures": {}, "settings": {}},
        {"curves": {}, "figures": {"steps": "many"}, "settings": {}},
        {"curves": {}, "figures": [], "settings": {}},
        {"curves": {}, "figures": {}, "settings": 3},
    ],
)
def test_a_report_that_somebody_changed_is_refused(tmp_path, run):
    (tmp_path / "r.json").write_text(json.dumps({"run": run}, indent=1))
    with pytest.raises(ValueError, match=r"r\.json: its run is none that `frcnn report` wrote"):
        read_run(tmp_path / "r.json", "x")
