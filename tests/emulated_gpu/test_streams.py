"""Captures of several streams, and that every call is logged."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from emulated_gpu import record

RUNTIME = Path(__file__).resolve().parents[2] / "tools" / "cuda_emulator" / "runtime"
ENTRY_POINT = re.compile(r"^\s*EXPORT [^;{]*?(\w+)\([^;{]*\{(.*?)^\s*\}", re.MULTILINE | re.DOTALL)


def forked(work, join=True):
    """A graph of what work(side) gives to the capturing stream and to a side stream that joined it."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        result = work(side)
        if join:
            torch.cuda.current_stream().wait_stream(side)
    return graph, result


def test_a_side_stream_that_a_capture_waits_for_is_part_of_the_graph():
    x = torch.ones(4, device="cuda")

    def work(side):
        y = x * 2
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y += 1
        return y

    graph, y = forked(work)
    for value in (1.0, 5.0, 7.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value + 1] * 4


@pytest.mark.parametrize("reader", ["side", "capturing"])
def test_a_missing_wait_inside_a_capture_shows_in_one_of_two_replays(reader):
    """Either stream is late in one of them."""
    x = torch.zeros(4, device="cuda")
    y = torch.zeros(4, device="cuda")
    seen = torch.zeros(4, device="cuda")

    def work(side):
        first, second = (None, side) if reader == "side" else (side, None)
        with torch.cuda.stream(first):
            y.copy_(x)
        with torch.cuda.stream(second):
            seen.copy_(y)

    graph, _ = forked(work)
    right = []
    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
        right.append(seen.tolist() == [value] * 4)
    assert sorted(right) == [False, True]


def test_a_capture_that_does_not_wait_for_a_side_stream_cannot_end(without_faults):
    x = torch.ones(4, device="cuda")

    def work(side):
        with torch.cuda.stream(side):
            x.add_(1)

    with pytest.raises(RuntimeError, match=r"unjoined"):
        forked(work, join=False)
    without_faults.append("unjoined")
    assert (x + 1).tolist() == [2.0] * 4  # nothing was done, and the device goes on


def test_an_event_of_a_capture_is_not_waited_for_outside(without_faults):
    x, event = torch.ones(4, device="cuda"), torch.cuda.Event()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
        event.record()
    for wait in (event.synchronize, event.query, torch.cuda.Stream().wait_event):
        with pytest.raises(RuntimeError, match=r"captur"):
            wait(event) if wait.__name__ == "wait_event" else wait()
        without_faults.append("event")


def test_a_stream_cannot_join_two_captures(without_faults):
    x = torch.ones(4, device="cuda")
    events = []
    streams = [torch.cuda.Stream() for _ in range(2)]
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    for stream, graph in zip(streams, graphs, strict=True):
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="relaxed")
            _ = x + 1
            events.append(torch.cuda.Event())
            events[-1].record()
    with pytest.raises(RuntimeError, match=r"captur"):
        streams[0].wait_event(events[1])
    without_faults.append("merge")
    with torch.cuda.stream(streams[0]), pytest.raises(RuntimeError, match=r"captur"):
        graphs[0].capture_end()
    with torch.cuda.stream(streams[1]):
        graphs[1].capture_end()


def test_work_is_logged_with_its_stream():
    x, side = torch.ones(8, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())

    def work():
        y = x + 1
        with torch.cuda.stream(side):
            z = x + 2
            z.cpu()
        return y

    _, rows = record(work)
    kinds = [(row.kind, row.stream) for row in rows if row.kind != "malloc"]
    assert kinds == [("launch", 0)] + [(kind, side.cuda_stream) for kind in ("launch", "memcpy", "sync")]


def test_every_call_is_logged_where_that_is_asked_for():
    numbers = torch.ones(1 << 20, device="cuda")

    def work():
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            event.record()
            done = event.query(), stream.query()
        torch.cuda.mem_get_info()
        return done

    plain = record(work)[1]
    _, rows = record(work, every_call=True)
    calls = Counter(row.name for row in rows if row.kind == "call")
    for name in ("EventCreateWithFlags", "EventRecordWithFlags", "EventQuery", "StreamQuery", "MemGetInfo"):
        assert calls[f"cuda{name}"] == 1, name
    assert [row.kind for row in plain] == [row.kind for row in rows if row.kind != "call"]
    assert "call" not in {row.kind for row in plain}
    _, rows = record(lambda: (numbers.resize_(0), torch.cuda.empty_cache()), every_call=True)
    assert "cudaFree" in {row.name for row in rows if row.kind == "call"}


def test_every_entry_point_logs_its_call():
    """Of the runtime's sources: each function that it exports says so first."""
    names = []
    for file in sorted(RUNTIME.glob("*.cpp")):
        for name, body in ENTRY_POINT.findall(re.sub(r"\\\n", "\n", file.read_text())):
            assert body.lstrip().startswith("CALLED;"), f"{file.name}: {name}"
            names.append(name)
    assert len(names) > 100 and {"cudaFree", "cudaStreamCreate", "ncclAllReduce", "cublasCreate_v2"} <= set(
        names
    )
