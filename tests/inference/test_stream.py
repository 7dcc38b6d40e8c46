"""Many pictures: read ahead, batched by shape, answered in order."""

import threading
import time

import cv2
import numpy as np
import pytest
import torch
from test_cuda_graph import FakeCapture

from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN
from frcnn.inference.cuda_graph import GraphCache
from frcnn.inference.stream import batches_by_key, in_order, one_behind, prepared_ahead
from frcnn.preprocess import ImageError

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
    bad.write_bytes(b"not an image")
    assert len(fast.predict([good, str(good)])) == 2
    with pytest.raises(ValueError, match=r"images\[1\]: .*bad\.jpg is not an image"):
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


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("bad", [0, 1, 4, 7])
def test_a_bad_image_raises_after_the_results_before_it(fast, bad, batch_size):
    """Whatever is still being batched, or computed, then."""
    images = pictures(10)
    expected = [fast.predict(image) for image in images[:bad]]
    images[bad] = np.zeros((4, 4, 2), np.uint8)
    found = []
    with pytest.raises(ImageError, match=rf"images\[{bad}\]: an image array is"):
        for result in fast.stream(images, batch_size=batch_size, threads=2):
            found.append(result)
    assert len(found) == bad
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_an_exception_of_the_source_comes_after_the_results_before_it(fast):
    def source():
        yield from pictures(5)
        raise LookupError("the camera is gone")

    found = []
    with pytest.raises(LookupError, match="the camera is gone"):
        for result in fast.stream(source(), batch_size=3):
            found.append(result)
    assert len(found) == 5


def test_an_unexpected_exception_names_the_image(fast, monkeypatch):
    def broken(image, *arguments):
        raise MemoryError

    monkeypatch.setattr("frcnn.inference.fast_detector.prepare", broken)
    with pytest.raises(RuntimeError, match=r"images\[0\]: MemoryError"):
        fast.predict(pictures(2))


def prepare_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_threads_end_with_the_stream(fast, monkeypatch):
    stream = fast.stream(pictures(3) * 100, threads=3)
    next(stream)
    assert prepare_threads()
    stream.close()
    assert not prepare_threads()

    with pytest.raises(ImageError) as kept:  # with its frames
        list(fast.stream([*pictures(3), np.zeros(3)], threads=3))
    assert not prepare_threads() and kept

    def out_of_memory(*inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fast, "_run", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory") as kept:
        list(fast.stream(pictures(3) * 100, threads=3))
    assert not prepare_threads() and kept


def test_calls_are_made_one_behind():
    events = []

    def launched(count, error=None):
        for number in range(count):
            events.append(f"launch {number}")
            yield lambda number=number: events.append(f"finish {number}") or number
        if error is not None:
            raise error

    assert list(one_behind(launched(3))) == [0, 1, 2]
    assert events == ["launch 0", "launch 1", "finish 0", "launch 2", "finish 1", "finish 2"]
    assert list(one_behind(launched(0))) == []
    found = []
    with pytest.raises(ValueError, match="third"):
        for number in one_behind(launched(2, ValueError("third"))):
            found.append(number)
    assert found == [0, 1]
    with pytest.raises(ZeroDivisionError):  # a failed call is not made again
        list(one_behind([lambda: 1 / 0, lambda: 2]))


def test_options_are_checked(fast):
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"size": (0, 5)}, "size must be two positive"),
    ):
        with pytest.raises(ValueError, match=message):
            fast.stream(pictures(1), **options)
    with pytest.raises(ValueError, match="size must be two positive"):
        fast.predict(pictures(1)[0], size=(96, -64))
