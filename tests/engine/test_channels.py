"""Images of other than three channels: from a file or an array to a trained, exported, resumed model."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tiny_coco import read_content, write_content, write_tiny

import frcnn
import frcnn_ops
from frcnn.as_pixels import as_pixels, visible
from frcnn.checked import OptionError
from frcnn.checkpoint.load import CheckpointError, load_checkpoint
from frcnn.checkpoint.pretrained import load_backbone
from frcnn.config import DataConfig
from frcnn.data import load_dataset
from frcnn.data.check import check
from frcnn.data.combine import from_samples
from frcnn.data.sheet import sheet
from frcnn.engine.detect import detect
from frcnn.preprocess import normalize, prepare
from frcnn.read_image import ImageError, read_header, read_image

CHANNELS = [1, 2, 4, 5]


def train(recipe, *data, **options):
    return frcnn.train(recipe, *data, device="cpu", workers=0, weights="random", **options)


def of(recipe, channels, **data):
    numbers = {"mean": (60.0,) * channels, "std": (50.0,) * channels, "rgb": False}
    return replace(recipe, data=replace(recipe.data, **numbers, **data))


def spread(image, channels):
    """HWC uint8 with the image's own channels, again and again, each a little darker."""
    many = image[..., np.arange(channels) % 3].astype(int) - 3 * np.arange(channels)
    return many.clip(0, 255).astype(np.uint8)


@pytest.fixture
def arrays(tmp_path, request):
    """A tiny data set of .npy files."""
    channels = getattr(request, "param", 5)
    annotations, images = write_tiny(tmp_path / "data")
    content = read_content(annotations)
    for entry in content["images"]:
        file = images / entry["file_name"]
        np.save(file.with_suffix(".npy"), spread(cv2.imread(str(file)), channels))
        file.unlink()
        entry["file_name"] = file.with_suffix(".npy").name
    return write_content(annotations.parent, content), images


@pytest.fixture
def model(recipe):
    """Untrained, with a detection for whatever it sees."""
    sees = replace(recipe.model, roi_head=replace(recipe.model.roi_head, score_threshold=0.0), num_classes=2)
    torch.manual_seed(0)
    return frcnn.build(of(replace(recipe, model=sees), 5))


@pytest.mark.parametrize("channels", CHANNELS)
def test_pixels_reach_the_network_as_they_are(recipe, channels):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, channels), dtype=np.uint8)
    data = of(recipe, channels).data
    ready = prepare(image, data)
    assert np.array_equal(ready.pixels, image) and data.channels == channels
    half = prepare(image, data, (32, 24)).pixels
    assert half.shape == (24, 32, channels)
    for c in range(channels):  # cv2 rounds otherwise where it has code of its own for so many channels
        one = cv2.resize(image[..., c], (32, 24))
        assert np.abs(half[..., c].astype(int) - one).max() <= 1
    found = frcnn_ops.normalize_images(
        torch.from_numpy(image)[None], torch.tensor([[48.0, 64.0]]), data.mean, data.std, False, torch.float32
    )
    assert torch.equal(found[0], normalize(image, data))


def test_an_array_a_tensor_and_a_file_are_one_image(tmp_path, model):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "columns.npy", np.asfortranarray(image))
    (tmp_path / "other.png").write_bytes(b"no image")
    first = torch.from_numpy(image).permute(2, 0, 1)
    many = [image, first, first.permute(1, 2, 0), tmp_path / "a.npy", tmp_path / "columns.npy"]
    wanted, *others = model.predict([*many, image / np.float64(255)])
    assert len(wanted) and all(torch.equal(found.boxes, wanted.boxes) for found in others)
    (found, _) = model.predict(tmp_path)  # the folder's .npy files
    assert torch.equal(found.boxes, wanted.boxes)
    shown = wanted.draw(image)
    assert shown.shape == (48, 64, 3) and wanted.crops(image)[0].shape[2] == 3
    for other in (first, tmp_path / "a.npy"):
        assert np.array_equal(wanted.draw(other), shown)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((9, 9, 3), np.uint8), r"of shape \(height, width, 5\); got uint8 of shape \(9, 9, 3\)"),
        (np.zeros((9, 9), np.uint8), r"of shape \(height, width, 5\)"),
        (np.zeros((0, 9, 5), np.uint8), r"of shape \(height, width, 5\)"),
        (np.zeros((9, 9, 5), np.int64), "got int64"),
        (np.full((9, 9, 5), 2.0), "has floats that are not all within 0 to 1"),
        (np.full((9, 9, 5), 9, np.uint16), "would be black"),
    ],
)
def test_other_arrays_are_refused(image, said):
    with pytest.raises(ImageError, match=said):
        as_pixels(image, 5)


def test_files_of_other_channels_are_named(tmp_path, model):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((9, 9, 4), np.uint8))
    with pytest.raises(
        ImageError, match=r"a\.png has 3 channels, where 5 are expected: as many as data\.mean"
    ):
        model.predict(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"b\.npy has 4 channels, where 3 are expected"):
        prepare(tmp_path / "b.npy", DataConfig())
    with pytest.raises(FileNotFoundError, match=r"no images \(\.npy\) in it"):
        (tmp_path / "b.npy").unlink()
        model.predict(tmp_path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([{"a": 1}]), "holds object of shape"),
        (np.zeros((3, 3, 33), np.uint8), r"at most 32 channels"),
        (np.zeros((3, 3, 3, 3), np.uint8), r"of shape \(3, 3, 3, 3\)"),
        (np.zeros((0, 3, 3), np.uint8), "of shape"),
        (np.zeros((3, 3, 3), np.complex64), "holds complex64"),
    ],
)
def test_arrays_in_files_that_are_no_images(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=rf"a\.npy {said}|a\.npy .*{said}"):
            read(tmp_path / "a.npy")


def test_a_damaged_array_file_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((30, 40, 5), np.uint8))
    whole = (tmp_path / "a.npy").read_bytes()
    header = whole.replace(b"(30, 40, 5)", b"(9999999, 40, 5)".ljust(11))
    for content in (
        b"",
        whole[:50],
        whole[:-1],
        b"\x93NUMPY\x09\x00" + whole[8:],
        header,
        whole[:9] + header[9:],
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.npy (is|cannot|holds)"):
            read_image(tmp_path / "a.npy")
    assert read_header.__doc__ and visible(np.zeros((3, 3, 2), np.uint8)).shape == (3, 3, 3)


def test_settings_that_need_three_channels(recipe):
    for changes, said in (
        ({"std": (1.0,)}, r"DataConfig\.std is .*as many numbers in mean as in std"),
        ({"rgb": True}, "False for other than three channels"),
        ({"color_jitter": 0.1}, "0 but for three channels"),
        ({"mean": (1.0,) * 33}, "mean"),
    ):
        with pytest.raises(OptionError, match=said):
            replace(of(recipe, 5).data, **changes)


@pytest.mark.parametrize("arrays", CHANNELS, indirect=True)
def test_training_and_evaluating(recipe, arrays, tmp_path):
    channels = load_dataset(*arrays).read(0).shape[2]
    many = of(recipe, channels, scale_jitter=(0.7, 1.3), crop=0.5)
    result = train(many, *arrays, *arrays, work_dir=tmp_path / "run")
    assert -1 <= result.history[-1]["bbox_mAP"] <= 1 and len(result.history) == 2
    weight = torch.load(result.checkpoint)["state_dict"]["backbone.conv1.weight"]
    assert weight.shape[1] == channels
    model = frcnn.load(result.checkpoint)
    assert model.data.channels == channels and len(model.predict(arrays[1])) == 6


def test_images_of_other_channels_are_bad_ones(recipe, arrays, tmp_path):
    with pytest.raises(Exception, match="has 5 channels, where 3 are expected"):
        train(recipe, *arrays, work_dir=tmp_path / "run")


def test_items_of_a_map_style_data_set(recipe, arrays):
    read = load_dataset(*arrays)
    items = [(read.read(index), *read.boxes_of(index)) for index in range(len(read))]
    made = from_samples(items, read.class_names, channels=5)
    assert np.array_equal(made.read(3), read.read(3)) and made.widths.tolist() == read.widths.tolist()
    with pytest.raises(ValueError, match=r"samples\[0\]: an image array is"):
        from_samples(items, read.class_names)


def test_the_other_commands_look_at_such_images(recipe, arrays, tmp_path, model):
    dataset = load_dataset(*arrays)
    assert sheet(dataset, 4).shape[2] == 3
    found = check(dataset, of(recipe, 5), progress=False)
    assert not [finding for finding in found.findings if finding.level == "error"], found.findings
    result = detect(model, [arrays[1]], tmp_path / "out", formats=("crops",), min_score=0.0)
    assert not result.failed and len(json.loads(result.detections.read_text())) == 6
    assert cv2.imread(str(next((tmp_path / "out").rglob("0*.png")))) is not None


def test_filters_of_three_channels_are_spread(recipe, tmp_path):
    """Images whose channels repeat one another look to the first layer as they did."""
    torch.manual_seed(1)
    three = frcnn.build(recipe)
    weight = three.backbone.conv1.weight
    torch.save(three.backbone.state_dict(), tmp_path / "backbone.pth")
    for channels in (1, 2, 4, 6):
        model = frcnn.build(of(recipe, channels))
        report = load_checkpoint(model, three.state_dict())
        assert f"spread over {channels}" in str(report)
        own = model.backbone.conv1.weight
        gray, many = torch.randn(1, 1, 32, 32), torch.nn.functional.conv2d
        if channels % 3 == 0 or channels == 1:
            torch.testing.assert_close(
                many(gray.expand(1, channels, 32, 32), own), many(gray.expand(1, 3, 32, 32), weight)
            )
        torch.testing.assert_close(own[:, 0], weight.sum(1) if channels == 1 else weight[:, 0] * 3 / channels)
        other = frcnn.build(of(recipe, channels))
        load_backbone(other, tmp_path / "backbone.pth")
        assert torch.equal(other.backbone.conv1.weight, own)
    with pytest.raises(CheckpointError, match="1 of another shape"):
        load_checkpoint(three, model.state_dict())
