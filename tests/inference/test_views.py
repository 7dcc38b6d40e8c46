"""Several views of an image: which they are, and that their detections become the image's."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frcnn.checked import OptionError
from frcnn.config import DataConfig, ModelConfig, ViewConfig
from frcnn.data import load_dataset
from frcnn.engine.evaluate import evaluate
from frcnn.inference import views as views_module
from frcnn.inference.stream import Predictor
from frcnn.inference.views import ViewsDetector, regions
from frcnn.read_image import ImageError
from frcnn.zoo.build import build


class Bright(Predictor):
    """Finds rectangles of one color, by which it tells the class; wider ones with more confidence."""

    config, data = ModelConfig(), DataConfig(size=(400, 400), pad_divisor=1)
    class_names = tuple("abcdefghij")
    device = torch.device("cpu")

    def __init__(self):
        self.seen = []

    def fingerprint(self):
        return "bright"

    def _run(self, images, sizes, scales, details):
        (height, width), pixels = sizes[0].int().tolist(), images[0, ..., 0]
        self.seen.append((height, width))
        boxes, labels = [], []
        for color in range(100, 200, 10):
            rows, columns = torch.where((pixels[:height, :width] - color).abs() <= 2)
            if len(rows) > 3:
                ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                boxes.append(torch.stack(ends) / scales[0].repeat(2))
                labels.append((color - 100) // 10)
        found = torch.stack(boxes) if boxes else torch.zeros(0, 4)
        scores = (found[:, 2] - found[:, 0]) / 1000 + 0.5
        return (
            found[None],
            scores[None],
            torch.tensor([labels]).long().reshape(1, -1),
            torch.tensor([len(labels)]),
        )


@pytest.fixture
def small_model(small_recipe):
    """Untrained, with a detection for whatever it sees."""
    head = replace(small_recipe.model.roi_head, score_threshold=0.0)
    torch.manual_seed(0)
    return build(replace(small_recipe, model=replace(small_recipe.model, num_classes=2, roi_head=head)))


def image_of(*rectangles, size=(700, 900)):
    image = np.zeros((*size, 3), np.uint8)
    for color, (x1, y1, x2, y2) in enumerate(rectangles):
        image[y1:y2, x1:x2] = 100 + 10 * color
    return image


def found_in(image, **views):
    """Class -> box, of whole numbers where no view was resized."""
    found = ViewsDetector(Bright(), ViewConfig(**views)).predict([image])[0]
    return {name: [round(side, 1) for side in box] for box, _, _, name in found}


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1500), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap(width, height, tile, overlap):
    if max(width, height) > 40 * tile * (1 - overlap):
        return  # thousands of tiles
    views = ViewConfig(tile=tile, overlap=overlap)
    (whole, *tiles) = regions(width, height, views)
    assert whole == (0, 0, width, height)
    for side, length in ((0, width), (1, height)):
        spans = sorted({(t[side], t[side + 2]) for t in tiles}) or [(0, length)]
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(end - start == min(tile, length) for start, end in spans) or not tiles
        repeated = [before[1] - after[0] for before, after in pairwise(spans)]
        assert all(shared >= int(tile * overlap) - 1 for shared in repeated)


def test_a_small_object_is_found_in_a_tile_and_lies_where_it_is():
    """Shrunk with the image it is a pixel or two, and its color is blurred."""
    boxes = (630, 420, 637, 426), (100, 100, 500, 400)
    image = image_of(*boxes, size=(700, 900))
    whole = found_in(image)
    assert "a" not in whole or whole["a"] != [630.0, 420.0, 637.0, 426.0]
    tiled = found_in(image, tile=400)
    assert tiled["a"] == [630.0, 420.0, 637.0, 426.0]
    assert np.allclose(tiled["b"], [100, 100, 500, 400], atol=4)  # no tile has it whole: from the whole image


def test_what_a_tile_cuts_is_left_out():
    """An object across a border between tiles, as wide as their overlap: whole in one of the two."""
    for x in range(240, 420, 9):
        tiled = found_in(image_of((x, 300, x + 60, 330)), tile=400, overlap=0.2)
        assert tiled == {"a": [x, 300, x + 60, 330]}


def test_mirrored_views_lie_where_the_image_does():
    box = (10, 20, 70, 50)
    detector = ViewsDetector(Bright(), ViewConfig(flip=True, nms_iou=1.0))
    found = detector.predict([image_of(box, size=(400, 400))])[0]
    assert found.boxes.tolist() == [list(map(float, box))] * 2
    assert found_in(image_of(box, size=(400, 400)), flip=True) == {"a": list(box)}


def test_scales_are_of_the_recipes_size():
    model = Bright()
    ViewsDetector(model, ViewConfig(scales=(0.5, 1.0, 2.0))).predict(
        [image_of((0, 0, 90, 90), size=(300, 400))]
    )
    assert model.seen == [(150, 200), (300, 400), (600, 800)]


def test_images_keep_their_order_and_those_that_fail_their_place():
    images = [image_of((i, i, i + 40, i + 30), size=(500, 500)) for i in range(5)]
    detector = ViewsDetector(Bright(), ViewConfig(tile=300, flip=True))

    def read(number):
        return (None if number == 2 else detector.prepare(images[number])), number

    results = list(detector.results(range(5), read, batch_size=3))
    assert [number for number, _ in results] == [0, 1, 2, 3, 4] and results[2][1] is None
    for number, found in results:
        if found is not None:
            wanted = [number, number, number + 40, number + 30]
            assert len(found) == 1 and np.allclose(found.boxes[0], wanted, atol=1.5)  # views are resized


def test_the_best_of_all_views_are_kept(small_model):
    """No more than the model's own limit, best first."""
    limit = small_model.config.roi_head.max_detections
    image = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    found = ViewsDetector(small_model, ViewConfig(tile=120, flip=True, nms_iou=1.0)).predict([image])[0]
    assert len(found) == limit and (found.scores.diff() <= 0).all()


def test_one_view_is_the_image_as_it_is(small_model):
    image = np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    plain = small_model.predict(image)
    viewed = ViewsDetector(small_model, ViewConfig(tile=4000)).predict([image])[0]
    assert torch.equal(viewed.boxes, plain.boxes) and torch.equal(viewed.labels, plain.labels)


def test_an_image_alone_is_seen_as_one_of_many_is(small_model):
    image = np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    detector = ViewsDetector(small_model, ViewConfig(tile=90, flip=True))
    (many,), alone = detector.predict([image]), detector.predict(image)
    assert len(alone) and torch.equal(alone.boxes, many.boxes) and torch.equal(alone.scores, many.scores)


def test_views_are_made_as_they_are_needed(monkeypatch):
    """A view has the network's input size: of a large image, all at once do not fit into memory."""
    made, ahead = 0, []
    plain = views_module.prepare

    def counted(*arguments):
        nonlocal made
        made += 1
        return plain(*arguments)

    monkeypatch.setattr(views_module, "prepare", counted)
    detector = Bright()
    inner = detector._run

    def run(*arguments):
        ahead.append(made - len(ahead))
        return inner(*arguments)

    detector._run = run
    image = image_of((10, 10, 40, 40), size=(1000, 1000))
    viewed = ViewsDetector(detector, ViewConfig(tile=100))
    assert len(list(viewed.results([image], lambda one: (viewed.prepare(one), None), threads=2))) == 1
    assert len(ahead) > 150 and max(ahead) <= 12


def test_a_data_set_is_evaluated_in_views(tmp_path, small_model):
    from tiny_coco import write_tiny

    dataset = load_dataset(*write_tiny(tmp_path))
    small_model.class_names = dataset.class_names
    result = evaluate(ViewsDetector(small_model, ViewConfig(tile=32, flip=True)), dataset)
    assert not result.failed and -1 <= result.metrics["bbox_mAP"] <= 1


def test_what_views_cannot_do_is_said():
    detector = ViewsDetector(Bright(), ViewConfig(flip=True))
    with pytest.raises(OptionError, match="views have scales"):
        detector.predict([image_of()], size=(100, 100))
    with pytest.raises(OptionError, match="one view"):
        detector.predict([image_of()], details=True)
    with pytest.raises(ImageError, match="vanishes"):
        detector.predict([np.zeros((1, 5000, 3), np.uint8)])
    with pytest.raises(ImageError, match=r"1000x900 pixels has more than 4096 views: choose a larger"):
        ViewsDetector(Bright(), ViewConfig(tile=10)).predict([np.zeros((900, 1000, 3), np.uint8)])
    with pytest.raises(OptionError, match=r"views.scales=200.0: the network's input has at most"):
        ViewsDetector(Bright(), ViewConfig(scales=(1.0, 200.0)))
    fixed = Bright()
    fixed.shape = (64, 64)
    with pytest.raises(OptionError, match="images of any shape"):
        ViewsDetector(fixed, ViewConfig(flip=True))
