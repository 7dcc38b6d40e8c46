"""Many images: read ahead, batched by shape, answered in order."""

import threading
import time

import cv2
import numpy as np
import pytest
import torch
from same_detections import identical
from test_cuda_graph import FakeCapture

from frcnn.as_pixels import naming
from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN
from frcnn.inference.cuda_graph import GraphCache
from frcnn.inference.stream import batched, batches_by_key, in_order, one_behind, prepared_ahead
from frcnn.preprocess import prepare
from frcnn.read_image import ImageError

CONFIG = ModelConfig(
    backbone=BackboneConfig(depth=18),
    fpn_channels=16,
    rpn=RPNConfig(pre_nms_test=50, post_nms_test=20),
    roi_head=RoIHeadConfig(fc_channels=32, score_threshold=0.3),
    num_classes=2,
)
DATA = DataConfig(size=(96, 64))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = FasterRCNN(CONFIG, DATA).eval()
    with torch.no_grad():
        model.rpn_head.rpn_cls.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def fast(model):
    return model.optimize()


def random_images(count):
    """Landscapes, portraits and squares, all different."""
    generator = np.random.default_rng(0)
    shapes = [(64, 96), (96, 64), (64, 64)]
    return [generator.integers(0, 256, (*shapes[i * i % 7 % 3], 3), dtype=np.uint8) for i in range(count)]


def same(a, b):
    return (
        torch.equal(a.labels, b.labels)
        and torch.allclose(a.boxes, b.boxes, atol=1e-3)
        and torch.allclose(a.scores, b.scores, atol=1e-5)
    )


def in_batches(launch, images, batch_size):
    """The stream as a GPU has it: images that pad to one shape share a batch, and a batch is launched before
    the last one's result is awaited."""

    def read(item):
        with naming(item[0]):
            return prepare(item[1], DATA), item[0]

    ready = prepared_ahead(enumerate(images), read, threads=2, ahead=2 * batch_size)
    for turn, (index, found) in enumerate(batched(ready, launch, batch_size, overlap=True)):
        assert index == turn
        yield found


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_images(fast, batch_size):
    images = random_images(8)
    expected = [fast.predict(image) for image in images]
    found = list(in_batches(fast._launch_prepared, images, batch_size))
    assert len(found) == 8 and sum(map(len, expected)) > 0
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert not same(expected[0], expected[3])
    assert fast.predict([]) == []


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_a_result_is_the_same_to_the_bit_whatever_is_beside_it(model, fast, form):
    """On a CPU: alone, in a list, at another place, among others, with any batch size, as a stream."""
    detector = {"plain": model, "fast": fast}[form]
    images = random_images(9)
    alone = [detector.predict(image) for image in images]
    assert sum(map(len, alone)) > 0
    for batch_size in (1, 2, 4, 9):
        for order in (range(9), range(8, -1, -1), (0, 0, 0, 5, 0)):
            found = detector.predict([images[index] for index in order], batch_size=batch_size)
            assert all(identical(one, alone[index]) for one, index in zip(found, order, strict=True))
    for one, other in zip(detector.stream(iter(images), batch_size=3, threads=4), alone, strict=True):
        assert identical(one, other)


def test_what_cannot_be_used_keeps_its_turn(fast):
    """`results` hands out what comes with an image, and nothing detected where there is none."""
    images = dict(zip("abcdefgh", random_images(8), strict=True))

    def read(name):
        return (None if name in "bch" else prepare(images[name], DATA)), name

    for batch_size in (1, 2, 3):
        found = dict(fast.results(images, read, batch_size))
        assert list(found) == list(images)
        for name, image in images.items():
            assert found[name] is None if name in "bch" else identical(found[name], fast.predict(image))
    ready = prepared_ahead(images, read, threads=2, ahead=4)
    found = list(batched(ready, fast._launch_prepared, batch_size=2, overlap=True))
    assert [name for name, _ in found] == list(images)
    assert [name for name, one in found if one is None] == list("bch")


def test_a_stream_is_lazy(fast):
    taken = []

    def source():
        for index, image in enumerate(random_images(3) * 10**6):
            taken.append(index)
            yield image

    stream = fast.stream(source(), batch_size=2, threads=2)
    next(stream)
    stream.close()
    assert len(taken) < 50


def test_batches_share_a_shape():
    batches = []

    def launch(images):
        batches.append([image.padded_size for image in images])
        return lambda: list(images)

    images = random_images(8)
    found = list(in_batches(launch, images, 3))
    assert all(np.array_equal(one.pixels, image) for one, image in zip(found, images, strict=True))
    assert all(len(set(batch)) == 1 for batch in batches) and max(map(len, batches)) == 3
    assert {batch[0] for batch in batches} == {(64, 96), (96, 64), (64, 64)}


def test_graphs_are_replayed_per_shape(fast, monkeypatch):
    images = random_images(8)
    expected = fast.predict(images, batch_size=1)
    capture = FakeCapture()
    monkeypatch.setattr(fast, "_detect_padded", GraphCache(fast._network.detect_padded, capture))
    found = fast.predict(images, batch_size=1)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert capture.replays == 8 and capture.captures == 3


def test_an_unreadable_file_is_named(fast, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    cv2.imwrite(str(good), random_images(1)[0])
    bad.write_bytes(b"not an image")
    assert len(fast.predict([good, str(good)])) == 2
    with pytest.raises(ValueError, match=r"images\[1\]: .*bad\.jpg is not an image"):
        fast.predict([good, bad, good])
    with pytest.raises(FileNotFoundError, match="missing"):
        fast.predict([tmp_path / "missing.jpg"])
    with pytest.raises(ValueError, match="batch_size=0: it is a whole number, 1 or more"):
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


def test_images_of_other_sizes_give_other_boxes(fast):
    image = random_images(1)[0]
    small, large = fast.predict(image, size=(64, 64)), fast.predict(image, size=(192, 128))
    assert not same(small, large)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("bad", [0, 1, 4, 7])
def test_a_bad_image_raises_after_the_results_before_it(fast, bad, batch_size):
    """Whatever is still being batched, or computed, then."""
    images = random_images(10)
    expected = [fast.predict(image) for image in images[:bad]]
    images[bad] = np.zeros((4, 4, 2), np.uint8)
    found = []
    with pytest.raises(ImageError, match=rf"images\[{bad}\]: an image array is"):
        for result in in_batches(fast._launch_prepared, images, batch_size):
            found.append(result)
    assert len(found) == bad
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_an_exception_of_the_source_comes_after_the_results_before_it(fast):
    def source():
        yield from random_images(5)
        raise LookupError("the camera is gone")

    found = []
    with pytest.raises(LookupError, match="the camera is gone"):
        for result in fast.stream(source(), batch_size=3):
            found.append(result)
    assert len(found) == 5


def test_an_unexpected_exception_names_the_image(fast, monkeypatch):
    def broken(image, *arguments):
        raise MemoryError

    monkeypatch.setattr("frcnn.inference.stream.prepare", broken)
    with pytest.raises(RuntimeError, match=r"images\[0\]: MemoryError"):
        fast.predict(random_images(2))


def prepare_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_threads_end_with_the_stream(fast, monkeypatch):
    stream = fast.stream(random_images(3) * 100, threads=3)
    next(stream)
    assert prepare_threads()
    stream.close()
    assert not prepare_threads()

    with pytest.raises(ImageError) as kept:  # with its frames
        list(fast.stream([*random_images(3), np.zeros(3)], threads=3))
    assert not prepare_threads() and kept

    def out_of_memory(*inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fast, "_run", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory") as kept:
        list(fast.stream(random_images(3) * 100, threads=3))
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


def test_one_image_is_a_stream_too(fast, tmp_path):
    [image] = random_images(1)
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, image)
    for one in (path, image):
        [found] = fast.stream(one)
        assert same(found, fast.predict(image))


def test_options_are_checked(fast):
    for options, message in (
        ({"batch_size": 0}, "batch_size=0: it is a whole number, 1 or more"),
        ({"threads": 0}, "threads=0: it is a whole number, 1 or more"),
        ({"size": (0, 5)}, "it is two whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fast.stream(random_images(1), **options)
    with pytest.raises(ValueError, match="it is two whole numbers"):
        fast.predict(random_images(1)[0], size=(96, -64))
