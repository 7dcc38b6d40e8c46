"""The command line: help, defaults, errors, and a real interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_coco import write_tiny

from frcnn import cli


def run(*arguments):
    """(exit code, stdout and stderr) of a command."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code or 0


@pytest.mark.parametrize("command", ["train", "eval", "detect", "models", "convert", "verify"])
def test_every_command_explains_itself(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"usage: frcnn {command}" in out and len(out.splitlines()) > 8


def test_no_command_shows_the_help(capsys):
    assert run() == 0
    assert "detect" in capsys.readouterr().out


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
    assert files == [Path("a.json"), Path("images"), None, None]
    assert options["epochs"] == 3 and options["resume"] is True and options["precision"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "faster_rcnn_r51", "--train-annotations", "a", "--train-images", "b"],
            "no recipe is called",
        ),
        (["train", "--train-annotations", "a"], "takes the recipe's name first"),
        (
            ["train", "small_r18_fpn", "--train-annotations", "no.json", "--train-images", "."],
            "no.json: no such",
        ),
        (["detect", "absent.jpg", "--model", "absent.pth"], "absent.pth"),
        (["models", "nothing"], "no recipe is called 'nothing'"),
    ],
)
def test_errors_are_one_message(arguments, message, capsys):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("frcnn: ") and message in error and "Traceback" not in error


def test_the_resume_command_repeats_the_arguments():
    command = cli.resume_command(["/usr/bin/frcnn", "train", "small_r18_fpn", "--train-images", "my images"])
    assert command == "frcnn train small_r18_fpn --train-images 'my images' --resume"
    assert cli.resume_command(["frcnn", "train", "x", "--resume"]) == "frcnn train x --resume"


def test_train_interrupt_resume_eval_and_detect(tmp_path, capsys):
    """The life of a model, by the command line; Ctrl-C reaches the whole process group, as in a terminal."""
    annotations, images = write_tiny(tmp_path / "data", images=8)
    work_dir = tmp_path / "run"
    frcnn = [sys.executable, "-m", "frcnn"]
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
    train = [*frcnn, "train", "small_r18_fpn", *data, *small, "--work-dir", str(work_dir), "--workers", "1"]
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

    checkpoint = str(work_dir / "last.pth")
    score = ["eval", checkpoint, "--annotations", str(annotations), "--images", str(images), "--per-class"]
    assert run(*score, "--device", "cpu", "--workers", "0") == 0
    out = capsys.readouterr().out
    assert "bbox_mAP_50" in out and "square" in out
    found = tmp_path / "found"
    assert run("detect", str(images), "--model", checkpoint, "--output", str(found), "--device", "cpu") == 0
    assert len(json.loads((found / "detections.json").read_text())) == 8
    assert (found / "0.png").is_file()
