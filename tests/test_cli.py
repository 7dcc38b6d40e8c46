"""The command line: help, defaults, recipes, and a real interruption. Errors: test_cli_errors.py."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from command import run
from tiny_coco import write_tiny

import frcnn
from frcnn import cli
from frcnn.checkpoint.plain import to_plain
from frcnn.engine.train import train


@pytest.mark.parametrize("command", ["train", "eval", "detect", "models", "convert", "verify", "env"])
def test_every_command_explains_itself(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"usage: frcnn {command}" in out and len(out.splitlines()) > 5


def test_no_command_shows_the_help(capsys):
    assert run() == 0
    assert "detect" in capsys.readouterr().out


def test_env_says_what_there_is(capsys):
    assert run("env") == 0
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert facts["frcnn"] == frcnn.__version__ and facts["torch"].startswith(torch.__version__)
    assert "computes in float32" in facts["cpu"] and facts["built"].startswith("torch")
    assert ("cuda:0" in facts) == torch.cuda.is_available()


def test_env_tells_of_a_build_that_does_not_load(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "frcnn_ops", None)
    assert run("env") == 0
    assert "import of frcnn_ops halted" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = "import sys, frcnn.cli\ntry: frcnn.cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_train_options_default_to_the_named_recipe(capsys):
    assert run("train", "faster_rcnn_r50_caffe_fpn_mstrain_3x_coco", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--schedule.epochs INT (default: 36)" in out
    assert "640 672 704 736 768 800" in out


def test_train_passes_everything_on(monkeypatch):
    calls = []
    monkeypatch.setattr("frcnn.engine.train.train", lambda *a, **k: calls.append((a, k)) or 1 / 0)
    arguments = ["train", "small_r18_fpn", "--train-annotations", "a.json", "--train-images", "images"]
    arguments += ["--schedule.lr", "0.5", "--data.size", "64", "48", "--epochs", "3", "--resume"]
    assert run(*arguments) == 1
    ((recipe, *files), options) = calls[0]
    assert recipe.name == "small_r18_fpn" and recipe.schedule.lr == 0.5 and recipe.data.size == (64, 48)
    assert recipe.schedule.warmup_iterations == 50  # the recipe's own
    assert not files and options["train_annotations"] == (Path("a.json"),)
    assert options["val_images"] == ()
    assert options.keys() == inspect.signature(train).parameters.keys() - {
        "recipe",
        "callbacks",
        "train",
        "val",
    }
    assert options["epochs"] == 3 and options["resume"] is True and options["precision"] == "float32"


def test_every_setting_of_the_named_recipe_can_be_set(monkeypatch, capsys):
    """Model fields too; switches take their value, so that no option says the opposite of its help."""
    calls = []
    monkeypatch.setattr("frcnn.engine.train.train", lambda recipe, *_, **__: calls.append(recipe) or 1 / 0)
    arguments = ["train", "small_r18_fpn", "--train-annotations", "a.json", "--train-images", "images"]
    arguments += ["--model.roi-head.nms-iou", "0.6", "--model.backbone.norm-eval", "True"]
    assert run(*arguments, "--data.rgb", "False") == 1
    model, data = calls[0].model, calls[0].data
    assert model.roi_head.nms_iou == 0.6 and model.backbone.norm_eval is True and data.rgb is False
    assert model.rpn == frcnn.recipe("small_r18_fpn").model.rpn
    capsys.readouterr()
    assert run("train", "small_r18_fpn", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model.roi-head.nms-iou FLOAT (default: 0.5)" in out
    assert "--data.rgb {True,False} Whether the network sees RGB" in out and "--data.no-rgb" not in out


def test_the_help_of_train_is_short_until_a_recipe_is_named(capsys):
    assert run("train", "--help") == 0
    out = capsys.readouterr().out
    assert "--schedule.lr" not in out and "frcnn train RECIPE --help" in out


def test_a_run_s_recipe_is_read_back(tmp_path, monkeypatch, capsys):
    small = frcnn.recipe("small_r18_fpn")
    small = replace(small, name="mine", schedule=replace(small.schedule, epochs=77))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_plain(small)))
    assert frcnn.recipe(path) == small == frcnn.recipe(str(path))
    calls = []
    monkeypatch.setattr("frcnn.engine.train.train", lambda recipe, *_, **__: calls.append(recipe) or 1 / 0)
    data = ["--train-annotations", "a.json", "--train-images", "images"]
    assert run("train", str(path), *data, "--schedule.lr", "0.5") == 1
    assert calls == [replace(small, schedule=replace(small.schedule, lr=0.5))]


OWN = """
base = "small_r18_fpn"

[schedule]
epochs = 5
decay_epochs = [3, 4]

[data]
size = [320, 240]

[model.roi_head]
nms_iou = 0.6
"""


def test_a_recipe_of_ones_own_says_what_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    small = frcnn.recipe("small_r18_fpn")
    wanted = replace(
        small,
        name="mine",
        schedule=replace(small.schedule, epochs=5, decay_epochs=(3, 4)),
        data=replace(small.data, size=(320, 240)),
        model=replace(small.model, roi_head=replace(small.model.roi_head, nms_iou=0.6)),
    )
    assert frcnn.recipe(path) == wanted
    calls = []
    monkeypatch.setattr("frcnn.engine.train.train", lambda recipe, *_, **__: calls.append(recipe) or 1 / 0)
    assert run("train", str(path), "--train-annotations", "a.json", "--train-images", "images") == 1
    assert calls == [wanted]
    path.write_text('name = "other"\nbase = "faster_rcnn_r50_fpn_1x_coco"')
    assert frcnn.recipe(path).name == "other" and frcnn.recipe(path).published is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base = 5", "base is 5, not one of the names"),
        ('base = "mine.toml"', "base is 'mine.toml', not one of the names"),
        ("[schedule]\nepochs = 5", "holds no recipe"),
        ('base = "small_r18_fpn"\nepochs = 5', "epochs"),
        ('base = "small_r18_fpn"\nschedule = 5', "recipe.schedule is 5"),
        ('base = "small_r18_fpn"\n[schedule]\nepochs = 0', "epochs"),
        ('base = "small_r18_fpn"\n[schedule', "not a readable recipe in TOML"),
        ("a = 2020-01-01", "holds no recipe"),
    ],
)
def test_what_is_wrong_with_a_recipe_of_ones_own_is_named(text, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        frcnn.recipe(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b'{"model": {}}', b'{"name": "x", "modal": {}}', b"[" * 10_000, b"\xff", b" " * (1 << 21)],
)
def test_a_damaged_recipe_is_named(content, tmp_path, capsys):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    assert run("models", str(path)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"frcnn: {path}") and error.count("\n") == 1


def test_flags_say_what_they_do(capsys):
    assert run("detect", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--no-draw Write the JSON files only, no annotated images. (default: False)" in out
    assert run("models", "--help") == 0
    assert "usage: frcnn models [-h] [RECIPE]" in capsys.readouterr().out


def test_models_lists_the_small_recipe_and_shows_one_in_full(capsys):
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("small_r18_fpn ") for line in lines) and len(lines) == 1 + 16 + 2
    assert run("models", "small_r18_fpn") == 0
    assert "fc_channels: 256" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"frcnn {frcnn.__version__}, torch {metadata.version('torch')}\n"


def test_the_resume_command_repeats_the_arguments():
    command = cli.resume_command(
        ["/usr/bin/frcnn", "train", "small_r18_fpn", "--train-images", "my images"], {}
    )
    assert command == "frcnn train small_r18_fpn --train-images 'my images' --resume"
    assert cli.resume_command(["frcnn", "train", "x", "--resume"], {}) == "frcnn train x --resume"
    options_end = ["frcnn", "detect", "--model", "x.pth", "--", "-a.png", "--resume"]
    assert cli.resume_command(options_end, {}) == "frcnn detect --model x.pth --resume -- -a.png --resume"
    launched = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}
    assert cli.resume_command(["/x/frcnn/__main__.py", "train", "x"], launched) == (
        "torchrun --nproc-per-node 4 -m frcnn train x --resume"
    )
    command = cli.resume_command(["frcnn", "train", "x"], {**launched, "WORLD_SIZE": "8"})
    assert command == "torchrun --nnodes 2 … --nproc-per-node 4 -m frcnn train x --resume"


def test_train_interrupt_resume_eval_and_detect(tmp_path, capsys):
    """The life of a model, by the command line; Ctrl-C reaches the whole process group, as in a terminal."""
    annotations, images = write_tiny(tmp_path / "data", images=8)
    work_dir = tmp_path / "run"
    data = ["--train-annotations", str(annotations), "--train-images", str(images)]
    small = [
        "--data.size",
        "64",
        "48",
        "--data.train-short-sides",
        "48",
        "--batch-size",
        "1",
        "--epochs",
        "1",
    ]
    train = [sys.executable, "-m", "frcnn", "train", "small_r18_fpn", *data, *small]
    train += ["--work-dir", str(work_dir), "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}

    process = subprocess.Popen([*train, "--log-every", "1"], start_new_session=True, **streams)
    log, deadline = work_dir / "log.jsonl", time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "stopped after step" in error and "--resume" in error.splitlines()[-1]

    resumed = subprocess.run([*train, "--log-every", "1", "--resume"], check=False, timeout=240, **streams)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout
    steps = [(line["epoch"], line["iter"]) for line in map(json.loads, log.read_text().splitlines())]
    assert steps == [(1, step) for step in range(1, 9)]

    assert run(*train[3:], "--resume", "--seed", "1", "--schedule.lr", "0.5", "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "--schedule.lr 0.02, now --schedule.lr 0.5; --seed 0, now --seed 1. Resume" in error

    checkpoint = str(work_dir / "last.pth")
    score = ["eval", checkpoint, "--annotations", str(annotations), "--images", str(images), "--per-class"]
    assert run(*score, "--device", "cpu", "--threads", "2") == 0
    out = capsys.readouterr().out
    assert "bbox_mAP_50" in out and "square" in out
    found = tmp_path / "found"
    detect = ["detect", str(images), "--model", checkpoint, "--output", str(found), "--device", "cpu"]
    assert run(*detect) == 0
    assert len(json.loads((found / "detections.json").read_text())) == 8
    assert (found / "0.png").is_file()
    assert run(*detect, "--resume", "--no-draw") == 1
    assert "with other settings (no --no-draw, now --no-draw): resume" in capsys.readouterr().err
