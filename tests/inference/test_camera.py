"""A webcam by Video4Linux2: one without hardware (camera.cpp), preloaded into a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import frcnn

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Video4Linux2 is Linux's")

SHOW = """
import itertools, json, frcnn
camera = frcnn.video("/dev/video0")
frames = list(itertools.islice(camera, 12))
camera.close()
print(json.dumps([[f.number, round(f.time, 3), f.shape, int(f.min()), int(f.max())] for f in frames]))
"""
DETECT = "detect /dev/video0 --model ../mine.pth --output out --batch-size 2".split()


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("camera") / "camera.so"
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-o", str(library), str(HERE / "camera.cpp"), "-ldl"], check=True
    )
    return library


@pytest.fixture
def folder(tmp_path) -> Path:
    """Empty, beside a model."""
    frcnn.build("small_r18_fpn", class_names=("bar", "square")).save(tmp_path / "mine.pth")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def started(words: list[str], camera: Path, folder: Path, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "LD_PRELOAD": str(camera), "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def lines_of(folder: Path) -> list:
    path = folder / "out" / "video0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("pixels", ["YUYV", "BGR"])
def test_the_frames_of_a_camera_outlive_it(camera, tmp_path, pixels):
    out, err = started(["-c", SHOW], camera, tmp_path, **{f"CAMERA_{pixels}": "1"}).communicate()
    for number, (counted, second, shape, low, high) in enumerate(json.loads(out or err)):
        assert (counted, second, shape) == (number, number / 10, [16, 32, 3])
        gray = 8 * number * 255 / 219 if pixels == "YUYV" else 16 + 8 * number  # video's 16 to 235
        assert gray - 3 < low <= high < gray + 3


def test_ctrl_c_ends_a_camera_and_keeps_what_it_showed(camera, folder):
    process = started(["-m", "frcnn", *DETECT], camera, folder)
    while process.poll() is None and len(lines_of(folder)) < 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    lines = lines_of(folder)
    assert [line["frame"] for line in lines] == list(range(len(lines))) and len(lines) >= 4
    assert len(list(frcnn.video(folder / "out" / "video0.mp4"))) == len(lines)


def test_a_camera_that_is_unplugged_leaves_what_it_showed(camera, folder):
    process = started(["-m", "frcnn", *DETECT], camera, folder, CAMERA_FRAMES="6")
    out, err = process.communicate()
    assert process.returncode == 1 and "6 frames" in out
    assert "/dev/video0" in err and "No such device" in err
    assert len(lines_of(folder)) == 6
