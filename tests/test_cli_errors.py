"""What goes wrong at the command line is one message in its own terms; a bug keeps its traceback."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro
from command import run
from tiny_coco import write_tiny

import frcnn
from frcnn.command_line import call
from frcnn.zoo.build import build

SMALL = ["--data.size", "64", "48", "--data.train-short-sides", "48", "--epochs", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation file and image folder of a tiny data set."""
    return write_tiny(tmp_path_factory.mktemp("data"), images=4)


@pytest.fixture
def no_work(monkeypatch):
    """Whatever begins to work, by building or loading a model, fails as a bug would."""

    def work(*_, **__):
        raise AssertionError("work began")

    for name in ("frcnn.engine.run.build", "frcnn.zoo.build.build", "frcnn.zoo.build.load"):
        monkeypatch.setattr(name, work)


def refused(capsys, naming, *arguments, code=2):
    """A command ends with one line that names something: 2 for what is wrong with the command line itself."""
    ended, error = run(*arguments), capsys.readouterr().err
    assert naming in error and error.startswith("frcnn: ") and error.count("\n") == 1, error
    assert ended == code, error


# --- words and names


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["trian"], "train"),
        (["detetc", "x.jpg"], "detect"),
        (["--verison"], "--version"),
        (["train", "small_r18_fpn", "--epoch", "3"], "--epochs"),
        (["train", "small_r18_fpn", "--data.sise=3"], "--data.size"),
        (["detect", "x.jpg", "--modle", "y.pth"], "--model"),
        (["train", "--train-annotations", "a"], "recipe's name first"),
        (["train", "best.pth", "--train-annotations", "a"], "add --weights best.pth"),
        (["train", "small_r18_fnp"], "small_r18_fpn"),
        (["models", "faster_rcnn_r50_fpn_1x"], "faster_rcnn_r50_fpn_1x_coco"),
        (["detect", "--model", "x.pth"], "name at least one image"),
        (["export", "x.pth"], "missing --images; see frcnn export --help"),
        (["export", "--images", "y"], "missing MODEL; see frcnn export --help"),
        (["export", "x.pth", "--images", "y", "--format", "coreml"], "--format coreml: expected one of"),
        (["verify", "r102"], "no case 'r102'; did you mean r101"),
        (["train", "small_r18_fpn"], "missing --train-annotations, --train-images; see frcnn train --help"),
        (["detect", "x.jpg"], "missing --model; see frcnn detect --help"),
        (["eval", "--model", "x.pth"], "MODEL goes without --model: frcnn eval MODEL …"),
        (["eval"], "missing MODEL, --annotations, --images; see frcnn eval --help"),
        (["convert", "a"], "missing TARGET"),
        (["models", "a", "b"], "no use in frcnn models for 'b'"),
        (["models", ""], "RECIPE: its value is empty"),
        (["detect", ""], "PATHS: its value is empty"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(arguments, near, capsys):
    refused(capsys, near, *arguments)


def test_python_says_how_to_load_a_trained_checkpoint(tmp_path):
    with pytest.raises(frcnn.UnknownRecipe) as caught:
        build("work_dirs/x/best.pth")
    assert "frcnn.load('work_dirs/x/best.pth')" in str(caught.value)
    assert isinstance(caught.value, KeyError)
    with pytest.raises(frcnn.CheckpointError, match=r"best\.pth"):
        frcnn.load(tmp_path / "best.pth")


def test_every_public_name_is_there():
    for name in frcnn.__all__:
        assert getattr(frcnn, name) is not None
    assert set(frcnn.__all__) == set(frcnn._HOMES)
    assert issubclass(frcnn.DatasetError, ValueError) and issubclass(frcnn.Interrupted, KeyboardInterrupt)


# --- options are checked before work


@pytest.mark.parametrize(
    ("naming", "options"),
    [
        ("device 'gpu'", ["--device", "gpu"]),
        ("device 'cuda:99'", ["--device", "cuda:99"]),
        ("epoch", ["--epochs", "0"]),
        ("num-classes", ["--model.num-classes", "3"]),
        ("validation", ["--val-annotations", "x.json"]),
        ("no such", ["--weights", "nowhere.pth"]),
        ("batch-size", ["--batch-size", "0"]),
        ("workers", ["--workers", "-1"]),
        ("seed", ["--seed", "-1"]),
        ("log-every", ["--log-every", "0"]),
        ("save-every", ["--save-every", "0"]),
        ("eval-every", ["--eval-every", "0"]),
        ("reinit-heads", ["--reinit-heads"]),
        ("epochs", ["--schedule.epochs", "0"]),
        ("lr", ["--schedule.lr", "-1"]),
        ("size", ["--data.size", "0", "0"]),
        ("flip", ["--data.flip", "2"]),
        ("nms", ["--model.roi-head.nms-iou", "50"]),
        ("frozen", ["--model.backbone.frozen-stages", "5"]),
        ("strides", ["--model.strides", "4", "8"]),
        ("box-loss", ["--model.roi-head.box-loss", "smooth_l1"]),
        ("epochs", ["--epochs", "many"]),
        ("--data.rgb yes: expected True or False", ["--data.rgb", "yes"]),
        ("--schedule.lr abc: expected a number", ["--schedule.lr", "abc"]),
        ("--schedule.clip-grad-norm x: expected a number", ["--schedule.clip-grad-norm=x"]),
        ("--workers x: expected a whole number", ["--workers", "x"]),
        ("--workers: expected a whole number", ["--workers"]),
        (
            "--precision float8: expected one of 'float32', 'tf32', 'bfloat16', 'float16'",
            ["--precision", "float8"],
        ),
        ("--data.size 5: expected 2 whole numbers", ["--data.size", "5"]),
        ("--data.size 5 x: expected 2 whole numbers", ["--data.size", "5", "x"]),
        ("--schedule.decay-epochs 3 x: expected whole numbers", ["--schedule.decay-epochs", "3", "x"]),
        (
            "--model.roi-head.neg-iou is 0.9, expected at most --model.roi-head.pos-iou, 0.5",
            ["--model.roi-head.neg-iou", "0.9"],
        ),
        (
            "--model.backbone.recompute is True, expected False where --model.backbone.norm-eval is",
            ["--model.backbone.recompute", "True", "--model.backbone.norm-eval", "False"],
        ),
        ("--data.size is 48 64, expected the long side first", ["--data.size", "48", "64"]),
        ("--resume takes no value", ["--resume=yes"]),
        ("--work-dir: its value is empty", ["--work-dir", ""]),
        ("no use in frcnn train for 'surplus'", ["surplus"]),
        ("did you mean --batch-size", ["batch_size=3"]),
        ("-epochs", ["-epochs", "3"]),
        ("--seed 9", ["--seed", "9" * 5000]),
    ],
)
def test_train_checks_its_options(naming, options, data, tmp_path, no_work, capsys, request):
    annotations, images = data
    if "nowhere.pth" in options:
        request.getfixturevalue("monkeypatch").setattr("frcnn.engine.run.build", build)
    arguments = ["--train-annotations", annotations, "--train-images", images, "--work-dir", tmp_path / "run"]
    code = 1 if "nowhere.pth" in options else 2
    refused(capsys, naming, "train", "small_r18_fpn", *arguments, *options, code=code)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--batch-size 0: it is a whole number, 1 or more", {"--batch-size": 0}),
        ("--batch-size -3: it is", {"--batch-size": -3}),
        ("--threads 0: it is", {"--threads": 0}),
        ("tf32 is a format of NVIDIA GPUs", {"--precision": "tf32"}),
        ("is a folder", {"--output": "{tmp}"}),
        ("annotations.json", {"--output": "{annotations}/out.json"}),
        ("{tmp}/no.json: no such", {"--annotations": "{tmp}/no.json"}),
        ("no such", {"--images": "{tmp}/nowhere"}),
        ("device 'gpu'", {"--device": "gpu"}),
    ],
)
def test_eval_checks_its_options(message, options, data, tmp_path, no_work, capsys):
    annotations, images = data
    given = {"--annotations": annotations, "--images": images, "--device": "cpu", **options}
    words = [
        str(word).format(tmp=tmp_path, annotations=annotations) for pair in given.items() for word in pair
    ]
    code = 1 if {"--output", "--annotations", "--images"} & set(options) else 2
    refused(capsys, message.format(tmp=tmp_path), "eval", "model.pth", *words, code=code)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("{tmp}/no.png: no such", ["{tmp}/no.png"]),
        ("a file is there", ["{images}", "--output", "{annotations}"]),
        ("device 'gpu'", ["{images}", "--device", "gpu"]),
        ("device 'cuda:99'", ["{images}", "--device", "cuda:99"]),
        ("device 'meta'", ["{images}", "--device", "meta"]),
        ("checkpoint", ["{images}", "--weights", "coco"]),
        ("tf32 is a format of NVIDIA GPUs", ["{images}", "--precision", "tf32", "--device", "cpu"]),
        ("--shard 3: it is K/N", ["{images}", "--shard", "3"]),
        ("--shard 4/3: shards of N go from 1/N to N/N", ["{images}", "--shard", "4/3"]),
    ],
)
def test_detect_checks_its_arguments(message, arguments, data, tmp_path, no_work, capsys):
    names = {"tmp": tmp_path, "annotations": data[0], "images": data[1]}
    arguments = ["--output", "{tmp}/found", *arguments]
    words = [word.format(**names) for word in arguments]
    code = 1 if "{tmp}/no.png" in arguments or "{annotations}" in arguments else 2
    refused(capsys, message.format(**names), "detect", "--model", "model.pth", *words, code=code)
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize(
    ("naming", "options"),
    [
        ("min-score", ["--min-score", "7"]),
        ("min-score", ["--min-score", "nan"]),
        ("--size 0 0: it is two whole numbers above 0", ["--size", "0", "0"]),
        ("batch-size", ["--batch-size", "0"]),
        ("--size 640 -480: it is", ["--size", "640", "-480"]),
        ("--size 640: expected 2 whole numbers", ["--size", "640"]),
        ("--size 640 480 x.jpg: expected 2 whole numbers", ["--size", "640", "480", "x.jpg"]),
    ],
)
def test_detect_checks_its_numbers(naming, options, data, tmp_path, monkeypatch, capsys):
    model = object()  # which cannot do anything
    monkeypatch.setattr("frcnn.commands.model.load_model", lambda *_: model)
    refused(capsys, naming, "detect", data[1], "--model", "x", "--output", tmp_path / "found", *options)


def test_a_folder_of_models_is_not_a_model(tmp_path, data, capsys):
    refused(capsys, "best.pth", "detect", data[1], "--model", tmp_path, "--output", tmp_path / "found")


@pytest.mark.parametrize(
    ("message", "target"),
    [
        ("there is no folder {tmp}/no", "{tmp}/no/x.pth"),
        ("{tmp}/folder.pth is a folder", "{tmp}/folder.pth"),
        (".safetensors", "{tmp}/x.onnx"),
    ],
)
def test_convert_checks_its_target_first(message, target, tmp_path, capsys):
    (tmp_path / "folder.pth").mkdir()
    code = 2 if target.endswith(".onnx") else 1
    target = target.format(tmp=tmp_path)
    refused(capsys, message.format(tmp=tmp_path), "convert", "absent.pth", target, code=code)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--batch 7: a dynamic file takes 1 to 64 images", ["--dynamic", "--batch", "7"]),
        ("--batch 0: it is a whole number", ["--batch", "0"]),
        ("--size 100 160: height and width are multiples of 32", ["--size", "100", "160"]),
        ("onnx is written in float32 or float16", ["--precision", "int8"]),
        ("--dynamic: int8", ["--format", "openvino", "--precision", "int8", "--dynamic"]),
        ("--most-images 0: it is", ["--most-images", "0"]),
        ("{tmp}/no: no such file or folder", ["--images", "{tmp}/no"]),
        ("no images", ["--images", "{tmp}/empty"]),
        ("ends in .onnx", ["--output", "{tmp}/x.pth"]),
        ("there is no folder {tmp}/no", ["--output", "{tmp}/no/x.onnx"]),
        ("{tmp}/other.xml exists, and is no export", ["--format", "openvino", "--output", "{tmp}/other.xml"]),
        ("{tmp}/weights.bin exists", ["--format", "openvino", "--output", "{tmp}/weights.xml"]),
        ("{tmp}/mine.onnx exists, and is no export", ["--output", "{tmp}/mine.onnx"]),
    ],
)
def test_export_checks_its_options(message, options, data, tmp_path, no_work, monkeypatch, capsys):
    """Before it builds a model, and without a touch to what is there."""
    monkeypatch.setattr("frcnn.export.export.check_packages", lambda *_: None)
    (tmp_path / "empty").mkdir()
    for name in ("other.xml", "weights.bin", "mine.onnx"):
        (tmp_path / name).write_text("somebody's work")
    words = [word.format(tmp=tmp_path) for word in options]
    given = [] if "--images" in options else ["--images", data[1]]
    output = [] if "--output" in options else ["--output", tmp_path / "x.onnx"]
    if "openvino" in options and output:
        output = ["--output", tmp_path / "x.xml"]
    code = 2 if message.startswith(("--", "onnx")) else 1
    refused(capsys, message.format(tmp=tmp_path), "export", "m.pth", *given, *output, *words, code=code)
    assert all((tmp_path / name).read_text() == "somebody's work" for name in ("other.xml", "mine.onnx"))
    assert (tmp_path / "weights.bin").read_text() == "somebody's work" and len(list(tmp_path.iterdir())) == 4


def test_convert_names_a_missing_source(tmp_path, capsys):
    refused(capsys, "absent.pth", "convert", "absent.pth", tmp_path / "x.pth", code=1)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("no case 'nope'", ["nope"]),
        ("device 'gpu'", ["--device", "gpu"]),
        ("/nowhere: no such", ["--reference", "/nowhere"]),
    ],
)
def test_verify_checks_its_arguments(message, arguments, capsys):
    refused(capsys, message, "verify", *arguments, code=1 if "/nowhere" in arguments else 2)


# --- a full disk


@dataclass(frozen=True)
class Ended:
    code: int
    error: str


def limited(kilobytes, *arguments):
    """A command whose files may not grow above a limit: as on a full disk, writing fails half-way."""
    command = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-", sys.executable, "-m", "frcnn"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    return Ended(done.returncode, done.stderr)


def test_a_full_disk_is_one_message(data, tmp_path):
    annotations, images = data
    files = ["--train-annotations", annotations, "--train-images", images, "--work-dir", tmp_path / "run"]
    ended = limited(1000, "train", "small_r18_fpn", *files, *SMALL, "--device", "cpu", "--workers", "0")
    assert ended.code == 1 and "Traceback" not in ended.error, ended.error
    assert ended.error.splitlines()[-1].startswith("frcnn: ")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["name"] == "small_r18_fpn"
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "tf32"])
def test_a_precision_that_the_cpu_has_not_is_refused_in_options(
    precision, data, no_work, monkeypatch, capsys
):
    monkeypatch.setattr("frcnn.inference.hardware.cpu_computes", lambda precision: False)
    files = "--annotations", data[0], "--images", data[1]
    train = "--train-annotations", data[0], "--train-images", data[1]
    for command in (
        ("train", "small_r18_fpn", *train),
        ("eval", "best.pth", *files),
        ("detect", data[1], "--model", "best.pth"),
    ):
        refused(capsys, "use --precision float32", *command, "--precision", precision, "--device", "cpu")


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b.jpg", "--model", "m.pth", "--batch-size", "2"],
        ["a", "--model", "m.pth", "b.jpg", "--batch-size", "2"],
        ["--model=m.pth", "--batch-size", "2", "a", "b.jpg"],
        ["--batch-size", "2", "a", "--model", "m.pth", "--", "b.jpg"],
    ],
)
def test_images_may_stand_anywhere(words):
    def detect(paths: Annotated[tuple[str, ...], tyro.conf.Positional], model: str, batch_size: int = 4):
        return paths, model, batch_size

    assert call(detect, "frcnn detect", words) == (("a", "b.jpg"), "m.pth", 2)
