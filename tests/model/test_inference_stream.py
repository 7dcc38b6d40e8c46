"""Many pictures: read ahead, batched by shape, answered in order."""

import threading
import time

import cv2
import numpy as np
import pytest
import torch
from test_inference_graph import FakeCapture

from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.cuda_graph import GraphCache
from frcnn.detector import FasterRCNN
from frcnn.prefetch import batches_by_key, in_order, prepared_ahead

CONFIG = ModelConfig(
    backbone=BackboneConfig(depth=18),
    fpn_channels=16,
    rpn=RPNConfig(pre_nms_test=50, post_nms_test=20),
    roi_head=RoIHeadConfig(fc_channels=32, score_threshold=0.3),
    num_classes=2,
)
DATA = DataConfig(size=(96, 64))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    model = FasterRCNN(CONFIG, DATA).eval()
    with torch.no_grad():
        model.rpn_head.rpn_cls.weight.mul_(20)
    return model.optimize()


def pictures(count):
    """Landscapes, portraits and squares, all different."""
    generator = np.random.default_rng(0)
    shapes = [(64, 96), (96, 64), (64, 64)]
    return [generator.integers(0, 256, (*shapes[i * i % 3], 3), dtype=np.uint8) for i in range(count)]


def same(a, b):
    return (
        torch.equal(a.labels, b.labels)
        and torch.allclose(a.boxes, b.boxes, atol=1e-3)
        and torch.allclose(a.scores, b.scores, atol=1e-5)
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_results_come_in_the_order_of_the_pictures(fast, batch_size):
    images = pictures(8)
    expected = [fast.predict(image) for image in images]
    found = fast.predict(images, batch_size=batch_size)
    assert len(found) == 8 and sum(map(len, expected)) > 0
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert not same(expected[0], expected[3])
    assert fast.predict([]) == []


def test_a_stream_is_lazy(fast):
    taken = []

    def source():
        for index, image in enumerate(pictures(3) * 10**6):
            taken.append(index)
            yield image

    stream = fast.stream(source(), batch_size=2, threads=2)
    next(stream)
    stream.close()
    assert len(taken) < 50


def test_batches_share_a_shape(fast, monkeypatch):
    shapes = []
    run = fast._run
    monkeypatch.setattr(fast, "_run", lambda *inputs: shapes.append(tuple(inputs[0].shape)) or run(*inputs))
    fast.predict(pictures(8), batch_size=3)
    assert set(shapes) <= {(n, h, w, 3) for n in (1, 2, 3) for h, w in [(64, 96), (96, 64), (64, 64)]}
    assert sum(shape[0] for shape in shapes) == 8
    assert max(shape[0] for shape in shapes) == 3


def test_graphs_are_replayed_per_shape(fast, monkeypatch):
    images = pictures(8)
    expected = fast.predict(images, batch_size=1)
    capture = FakeCapture()
    monkeypatch.setattr(fast, "_run", GraphCache(fast._network.detect_padded, 2, capture))
    found = fast.predict(images, batch_size=1)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert capture.replays == 8 and capture.captures <= 3


def test_an_unreadable_file_is_named(fast, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    cv2.imwrite(str(good), pictures(1)[0])
    bad.write_bytes(b"not a picture")
    assert len(fast.predict([good, str(good)])) == 2
    with pytest.raises(ValueError, match=r"bad\.jpg is not a picture"):
        fast.predict([good, bad, good])
    with pytest.raises(FileNotFoundError, match="missing"):
        fast.predict([tmp_path / "missing.jpg"])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        fast.predict([good], batch_size=0)


def test_preparation_is_bounded_ordered_and_concurrent():
    lock, running, most, started = threading.Lock(), 0, 0, []

    def prepare(item):
        nonlocal running, most
        with lock:
            started.append(item)
            running += 1
            most = max(most, running)
        time.sleep(0.005 * (item % 3))
        with lock:
            running -= 1
        return item * item

    results = prepared_ahead(range(40), prepare, threads=4, ahead=6)
    for expected in range(40):
        assert next(results) == expected * expected
        assert len(started) <= expected + 8
    assert next(results, None) is None
    assert 1 < most <= 4


def test_an_error_waits_for_its_turn():
    results = prepared_ahead([1, 0, 2], lambda item: 1 / item, threads=2, ahead=3)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_by_key():
    items = [(key, index) for index, key in enumerate("abaabbbac")]
    batches = list(batches_by_key(items, lambda item: item[0], batch_size=3, patience=100))
    assert [[position for position, _ in batch] for batch in batches] == [[0, 2, 3], [1, 4, 5], [6], [7], [8]]
    assert all(items[position] == item for batch in batches for position, item in batch)


def test_a_rare_key_is_not_kept_back():
    batches = batches_by_key("r" + "c" * 100, lambda item: item, batch_size=4, patience=8)
    order = [batch[0][1] for batch in batches]
    assert order.index("r") <= 3


def test_in_order():
    batches = [[(1, "b"), (3, "d")], [(0, "a")], [(2, "c")]]
    assert list(in_order(batches)) == ["a", "b", "c", "d"]


def test_pictures_of_other_sizes_give_other_boxes(fast):
    image = pictures(1)[0]
    small, large = fast.predict(image, size=(64, 64)), fast.predict(image, size=(192, 128))
    assert not same(small, large)
