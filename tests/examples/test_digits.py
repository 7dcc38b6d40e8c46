"""The demo's data set."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import digits

from frcnn.data import load_dataset


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_the_demo_without_a_package_says_which_extra_has_it(package):
    demo = Path(digits.__file__).with_name("demo.py")
    code = f"import sys, runpy; sys.path[0] = {str(demo.parent)!r}; sys.modules[{package!r}] = None; "
    code += f"runpy.run_path({str(demo)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "needs matplotlib and scikit-learn: pip install" in done.stderr and "extra demo" in done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, digits.write_digits(folder, train_images=30, held_out_images=10, seed=3)


def test_it_is_a_sound_coco_data_set(written):
    folder, files = written
    for name, count in (("train", 30), ("held_out", 10)):
        dataset = load_dataset(files[name], folder / "images")
        assert len(dataset) == count and dataset.report.lines() == []
        assert dataset.class_names == tuple("0123456789")
        assert (dataset.box_counts() >= 4).all()
        for index in range(count):
            image = cv2.imread(str(dataset.image_path(index)))
            assert image.shape[:2] == (dataset.heights[index], dataset.widths[index])
            boxes, _ = dataset.boxes_of(index)
            assert (boxes >= 0).all() and (boxes[:, [2, 3]] <= image.shape[1::-1]).all()


def test_digits_stand_out_from_their_ground(written):
    folder, files = written
    dataset = load_dataset(files["train"], folder / "images")
    contrasts = []
    for index in range(len(dataset)):
        gray = cv2.imread(str(dataset.image_path(index)), cv2.IMREAD_GRAYSCALE).astype(float)
        for x1, y1, x2, y2 in dataset.boxes_of(index)[0].astype(int):
            low, high = np.percentile(gray[y1:y2, x1:x2], [5, 95])
            contrasts.append(high - low)
    assert np.percentile(contrasts, 5) > 40


def test_the_same_seed_makes_the_same_data(written, tmp_path):
    folder, files = written
    again = digits.write_digits(tmp_path, train_images=30, held_out_images=10, seed=3)
    for name, path in files.items():
        assert path.read_bytes() == again[name].read_bytes()
    for image in sorted((folder / "images").iterdir()):
        assert image.read_bytes() == (tmp_path / "images" / image.name).read_bytes()


def test_held_out_digits_are_other_originals(monkeypatch, tmp_path):
    seen = []
    original = digits._draw_image

    def draw_image(source, originals, rng):
        seen.append(set(originals.tolist()))
        return original(source, originals, rng)

    monkeypatch.setattr(digits, "_draw_image", draw_image)
    digits.write_digits(tmp_path, 1, 1)
    train, held_out = seen
    assert not train & held_out and len(train | held_out) == 1797
