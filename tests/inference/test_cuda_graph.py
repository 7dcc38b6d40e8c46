"""The cache of CUDA graphs, with a capture that works like CUDA's but runs on the CPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from frcnn.inference.cuda_graph import Captured, GraphCache


class FakeCapture:
    """Keeps the addresses of a capture: a replay reads the captured inputs and rewrites the same outputs."""

    def __init__(self):
        self.captures = 0
        self.replays = 0

    def __call__(self, function, inputs):
        self.captures += 1
        outputs = tuple(torch.full_like(output, -1) for output in function(*inputs))

        def replay():
            self.replays += 1
            for output, value in zip(outputs, function(*inputs), strict=True):
                output.copy_(value)

        return Captured(outputs, replay)


def double_and_sum(x, y):
    return 2 * x, x.sum() + y.sum()


def make(capacity=2):
    capture = FakeCapture()
    cache = GraphCache(double_and_sum, capture)
    cache.capacity = capacity
    return cache, capture


def test_a_replay_sees_the_new_inputs():
    cache, capture = make()
    for value in (1.0, 2.0, 3.0):
        x, y = torch.full((3,), value), torch.full((2,), 10 * value)
        doubled, total = cache(x, y)
        assert torch.equal(doubled, 2 * x)
        assert total == 23 * value
    assert (capture.captures, capture.replays) == (1, 3)


def test_inputs_and_outputs_are_the_callers_own():
    cache, _ = make()
    x = torch.ones(3)
    first, _ = cache(x, torch.zeros(1))
    x.fill_(5.0)  # must not reach the captured input
    second, _ = cache(torch.full((3,), 7.0), torch.zeros(1))
    assert torch.equal(first, torch.full((3,), 2.0)), "a later call overwrote an earlier result"
    assert torch.equal(second, torch.full((3,), 14.0))
    second.zero_()
    assert torch.equal(cache(torch.ones(3), torch.zeros(1))[0], first)


def test_threads_take_turns():
    """A second call comes while the first is between its inputs and its outputs, which it would overwrite."""
    begun, second = threading.Event(), threading.Event()
    waits = False

    def function(x):
        if waits and not begun.is_set():
            begun.set()
            second.wait(0.3)  # as long as it takes where the second call has to wait for this one
        elif waits:
            second.set()
        return (x + 0,)

    cache = GraphCache(function, FakeCapture())
    cache(torch.zeros(3))
    waits = True
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache, torch.full((3,), 1.0))
        assert begun.wait(10)
        other = pool.submit(cache, torch.full((3,), 2.0))
        assert first.result()[0].tolist() == [1.0] * 3 and other.result()[0].tolist() == [2.0] * 3


def test_a_graph_per_shape_and_dtype():
    cache, capture = make(capacity=5)
    for _ in range(2):
        for x in (torch.ones(3), torch.ones(4), torch.ones(3).double(), torch.ones(2, 3), torch.ones(3, 2).T):
            assert torch.equal(cache(x, torch.zeros(1))[0], 2 * x)
    assert (capture.captures, capture.replays, len(cache)) == (5, 10, 5)


def test_the_least_recently_used_graph_goes():
    cache, capture = make(capacity=2)
    y = torch.zeros(1)
    for length in (1, 2, 1, 3):  # 3 evicts 2, since 1 was used after it
        cache(torch.ones(length), y)
    assert (capture.captures, len(cache)) == (3, 2)
    cache(torch.ones(1), y)
    assert capture.captures == 3
    cache(torch.ones(2), y)
    assert capture.captures == 4


def test_a_failed_capture_leaves_no_entry():
    calls = []

    def capture(function, inputs):
        calls.append(inputs)
        raise RuntimeError("out of memory")

    cache = GraphCache(double_and_sum, capture)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            cache(torch.ones(3), torch.ones(1))
    assert len(cache) == 0 and len(calls) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_graph():
    cache = GraphCache(double_and_sum)
    for value in (1.0, 2.0, 3.0):
        x = torch.full((3,), value, device="cuda")
        doubled, total = cache(x, x)
        assert torch.equal(doubled, 2 * x) and total == 6 * value
