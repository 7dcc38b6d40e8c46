"""Several threads share one detector: each result is what a single thread gets, in every mode."""

import copy
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from same_detections import identical
from test_cuda_graph import FakeCapture

from frcnn.config import BackboneConfig, DataConfig, ModelConfig, RoIHeadConfig, RPNConfig
from frcnn.detector import FasterRCNN, evaluating
from frcnn.inference.cuda_graph import Captured, GraphCache
from frcnn.inference.fast_detector import FastDetector
from frcnn.inference.hardware import float32_arithmetic

THREADS = 8
CONFIG = ModelConfig(
    # norms that learn their statistics: training mode gives other results, and changes them
    backbone=BackboneConfig(depth=18, frozen_stages=-1, norm_eval=False),
    fpn_channels=16,
    rpn=RPNConfig(pre_nms_test=50, post_nms_test=20),
    roi_head=RoIHeadConfig(fc_channels=32),
    num_classes=2,
)


@pytest.fixture(autouse=True)
def busy():
    """One thread inside torch, and Python's threads change places often."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(interval)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = FasterRCNN(CONFIG, DataConfig(size=(96, 64)))
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.mul_(60)
        model.rpn_head.rpn_cls.weight.mul_(20)
    return model


IMAGES = [
    np.random.default_rng(number).integers(0, 256, (64, 96, 3) if number % 3 else (96, 64, 3), dtype=np.uint8)
    for number in range(6)
]


def check(predict, expected, count):
    """`count` predictions by threads that start at once."""
    start = threading.Barrier(THREADS)

    def work(thread):
        start.wait()
        wrong = 0
        for turn in range(count // THREADS):
            index = (thread + turn) % len(IMAGES)
            wrong += not identical(predict(IMAGES[index]), expected[index])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == 0
    assert sum(map(len, expected)) > 0


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["training", "evaluation", "eager", "compiled", "graph", "stream"])
def test_every_mode(mode, model, stress, record_property, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    state = copy.deepcopy(model.state_dict())
    expected = [model.predict(image) for image in IMAGES]
    if mode in ("training", "evaluation"):
        predict = model.train(mode == "training").predict
    else:
        form = "compiled" if mode == "compiled" else "eager"
        fast, alone = FastDetector(model, mode=form), FastDetector(model, mode=form)
        alone._detect_padded = alone._network.detect_padded
        expected = [alone.predict(image) for image in IMAGES]
        if mode == "graph":
            fast._detect_padded = GraphCache(fast._network.detect_padded, FakeCapture())
        predict = fast.predict if mode != "stream" else lambda image: next(fast.stream([image]))
    count = 1152 if stress else 96
    check(predict, expected, count)
    assert model.training == (mode != "evaluation")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    record_property("tried", f"{count:,} predictions by {THREADS} threads, {mode}")


def test_the_last_thread_out_switches_back(model):
    model.train()
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with evaluating(model):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    with evaluating(model):
        assert not model.training
    assert not model.training and not model.rpn_head.training
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with evaluating(twin):
            assert not twin.training
    leave.set()
    thread.join()
    assert model.training and model.rpn_head.training
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    assert model.training


def test_a_graph_is_used_by_one_thread_at_a_time():
    """Its inputs and outputs lie at fixed addresses: copying in, replaying and copying out is one turn."""
    inside = 0

    def capture(function, inputs):
        outputs = tuple(output.clone() for output in function(*inputs))

        def replay():
            nonlocal inside
            inside += 1
            assert inside == 1
            time.sleep(0.001)
            for output, value in zip(outputs, function(*inputs), strict=True):
                output.copy_(value)
            inside -= 1

        return Captured(outputs, replay)

    cache = GraphCache(lambda x: (2 * x,), capture)
    cache.capacity = 2

    def work(number):
        given = torch.full((3 + number % 3,), float(number))
        return torch.equal(cache(given)[0], 2 * given)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(48)))


def test_float32_settings_of_threads_do_not_mix():
    """They are the process's; nothing here runs on CUDA."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]

    def work(number):
        precision, wanted = (("float32", "ieee"), ("tf32", "tf32"))[number % 2]
        with float32_arithmetic(precision, torch.device("cuda")):
            time.sleep(0.001)
            return all(switch.fp32_precision == wanted for switch in switches)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(32)))
    assert [switch.fp32_precision for switch in switches] == before


def test_weights_are_laid_out_once_for_all_threads(model):
    """The first images of a detector, all at once, on convolutions that oneDNN lays out at first use."""
    expected = model.optimize().predict(IMAGES[0])
    for _ in range(3):
        fast = model.optimize()
        with ThreadPoolExecutor(THREADS) as pool:
            assert all(identical(found, expected) for found in pool.map(fast.predict, [IMAGES[0]] * THREADS))
