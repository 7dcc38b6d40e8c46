"""What goes wrong at the command line is one message in its own terms; a bug keeps its traceback."""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_coco import write_tiny

import frcnn
from frcnn import boundary, cli
from frcnn.zoo.build import build

SETTINGS = {"batch_size", "epochs", "reinit_heads", "schedule.clip_grad_norm", "weights", "work_dir"}
SMALL = ["--data.size", "64", "48", "--data.train-short-sides", "48", "--epochs", "1", "--batch-size", "4"]


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code or 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation file and image folder of a tiny data set."""
    return write_tiny(tmp_path_factory.mktemp("data"), images=4)


@pytest.fixture
def no_work(monkeypatch):
    """Whatever begins to work, by building or loading a model, fails as a bug would."""

    def work(*_, **__):
        raise AssertionError("work began")

    for name in ("frcnn.engine.train.build", "frcnn.zoo.build.build", "frcnn.zoo.build.load"):
        monkeypatch.setattr(name, work)


def refused(capsys, naming, *arguments, tyro=False):
    """A command ends with one message that names something, no traceback; tyro's are boxes and end in 2."""
    code, error = run(*arguments), capsys.readouterr().err
    assert "Traceback" not in error and naming in error, error
    if tyro and code == 2:
        return error
    assert code in (1, 2) and error.startswith("frcnn: ") and error.count("\n") == 1, (code, error)
    return error


# --- messages


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pass reinit_heads=True to train", "pass --reinit-heads to train"),
        ("pass weights=PATH.", "pass --weights PATH."),
        ("still has the best (weights=best.pth)", "still has the best (--weights best.pth)"),
        ("may do as a start (weights=)", "may do as a start (--weights)"),
        ("give another work_dir, or", "give another --work-dir, or"),
        ("batch_size=0: it is a whole number", "--batch-size 0: it is a whole number"),
        ("epochs must be at least 1, not 0", "--epochs must be at least 1, not 0"),
        ("or set schedule.clip_grad_norm.", "or set --schedule.clip-grad-norm."),
        # prose, paths, and what is no option of the command
        ("resume that run with other weights", "resume that run with other weights"),
        ("/data/batch_size/x and work_dir/last.pth", "/data/batch_size/x and work_dir/last.pth"),
        ("build it with num_classes=3", "build it with num_classes=3"),
    ],
)
def test_messages_speak_of_options_as_the_command_line_does(text, told):
    assert boundary.in_option_terms(text, SETTINGS) == told


def test_a_word_of_the_command_line_is_repeated_as_it_is(capsys):
    """A folder may be called as an option is."""

    def fail():
        raise FileNotFoundError("work_dir: no such folder, see batch_size")

    assert boundary.exit_code(fail, SETTINGS, ["train", "work_dir"]) == 1
    assert capsys.readouterr().err == "frcnn: work_dir: no such folder, see --batch-size\n"


def test_the_system_s_errors_are_told_without_python(capsys):
    assert boundary.exit_code(lambda: open("/nowhere/file"), ()) == 1
    assert capsys.readouterr().err == "frcnn: /nowhere/file: No such file or directory\n"

    def full():
        raise OSError(28, "No space left on device")

    assert boundary.exit_code(full, ()) == 1
    assert capsys.readouterr().err == "frcnn: No space left on device\n"


def numpy_refuses():
    np.zeros(3) + np.zeros(4)


BUGS = [lambda: {}["key"], lambda: [][1], numpy_refuses, lambda: 1 / 0, lambda: None.x]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_shows_its_traceback_and_says_what_it_is(bug, monkeypatch, capsys):
    monkeypatch.setattr("frcnn.zoo.table.models", lambda name: bug())
    assert run("models") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("frcnn: a bug of frcnn ")
    assert torch.__version__ in lines[-1] and "report" in lines[-1]


def test_tracebacks_of_user_errors_are_shown_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("FRCNN_DEBUG", "1")
    assert run("models", "nothing") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("frcnn: no recipe is called")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
    ],
)
def test_too_little_memory_is_no_bug(error, capsys):
    def fail():
        raise error

    assert boundary.exit_code(fail, ()) == 1
    text = capsys.readouterr().err
    assert text.startswith("frcnn: not enough memory (") and text.count("\n") == 1


def test_warnings_are_messages_too(monkeypatch, capsys):
    monkeypatch.setattr("frcnn.zoo.table.models", lambda name: warnings.warn("weights=x", stacklevel=1))
    assert run("models") == 0
    assert capsys.readouterr().err == "frcnn: warning: weights=x\n"  # not an option of `models`


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("frcnn.zoo.table.models", stop)
    assert run("models") == 130
    assert capsys.readouterr().err == "frcnn: interrupted\n"


WORKERS = """
import sys
import torch
from frcnn import boundary
from frcnn.data.coco import DatasetError

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index == 3:
            {failure}
        return index

def command():
    batches = iter(torch.utils.data.DataLoader(Data(), batch_size=1, num_workers=2))
    return sum(int(batch) for batch in batches)

raise SystemExit(boundary.exit_code(command, ()))
"""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise DatasetError('a.json: images[3]\\n  is bad')", "frcnn: a.json: images[3]\n  is bad\n"),
        ("open('/nowhere/3.png')", "frcnn: [Errno 2] No such file or directory: '/nowhere/3.png'\n"),
    ],
)
def test_an_error_in_a_loader_s_process_is_its_last_words(failure, message):
    """The whole of stderr: the other processes end without a word, at the interpreter's end too."""
    script = WORKERS.format(failure=failure)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, message)


def test_a_bug_in_a_loader_s_process_stays_a_bug():
    script = WORKERS.format(failure="{}['key']")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "KeyError: 'key'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("frcnn: a bug")


@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["models", "small_r18_fpn"]])
def test_a_closed_pipe_is_quiet(arguments):
    script = f"import sys\nfrom frcnn import cli\nsys.stdin.read()\ncli.main({arguments})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `head` does, before anything is written
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 141
    process.stderr.close()


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
        ("data.rgb", ["--data.rgb", "yes"]),
    ],
)
def test_train_checks_its_options(naming, options, data, tmp_path, no_work, capsys, request):
    annotations, images = data
    if "nowhere.pth" in options:
        request.getfixturevalue("monkeypatch").setattr("frcnn.engine.train.build", build)
    arguments = ["--train-annotations", annotations, "--train-images", images, "--work-dir", tmp_path / "run"]
    refused(capsys, naming, "train", "small_r18_fpn", *arguments, *options, tyro=True)


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
    refused(capsys, message.format(tmp=tmp_path), "eval", "model.pth", *words)


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
    ],
)
def test_detect_checks_its_arguments(message, arguments, data, tmp_path, no_work, capsys):
    names = {"tmp": tmp_path, "annotations": data[0], "images": data[1]}
    arguments = ["--output", "{tmp}/found", *arguments]
    words = [word.format(**names) for word in arguments]
    refused(capsys, message.format(**names), "detect", "--model", "model.pth", *words)
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize(
    ("naming", "options"),
    [
        ("min-score", ["--min-score", "7"]),
        ("min-score", ["--min-score", "nan"]),
        ("size", ["--size", "0", "0"]),
        ("batch-size", ["--batch-size", "0"]),
        ("size", ["--size", "640", "-480"]),
    ],
)
def test_detect_checks_its_numbers(naming, options, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_load", lambda *_: object())  # a model that cannot do anything
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
    refused(capsys, message.format(tmp=tmp_path), "convert", "absent.pth", target.format(tmp=tmp_path))


def test_convert_names_a_missing_source(tmp_path, capsys):
    refused(capsys, "absent.pth", "convert", "absent.pth", tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("no case nocase", ["nocase"]),
        ("device 'gpu'", ["--device", "gpu"]),
        ("/nowhere: no such", ["--reference", "/nowhere"]),
    ],
)
def test_verify_checks_its_arguments(message, arguments, capsys):
    refused(capsys, message, "verify", *arguments)


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
