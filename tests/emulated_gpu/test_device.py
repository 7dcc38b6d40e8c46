"""The emulated device does what a GPU does: late, on its streams, within its limits."""

import threading

import pytest
import torch
from emulated_gpu import record

import frcnn_ops
from frcnn.inference.cuda_graph import GraphCache


def pinned(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def test_an_asynchronous_copy_is_there_after_its_event_and_not_before():
    numbers = torch.arange(4.0, device="cuda") + 1
    on_host = pinned(numbers).zero_()
    on_host.copy_(numbers, non_blocking=True)
    assert on_host.tolist() == [0, 0, 0, 0]
    ready = torch.cuda.Event()
    ready.record()
    ready.synchronize()
    assert on_host.tolist() == [1, 2, 3, 4]


def test_an_event_of_another_stream_does_not_wait_for_the_copy():
    numbers = torch.arange(4.0, device="cuda") + 1
    on_host = pinned(numbers).zero_()
    on_host.copy_(numbers, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.Stream())
    ready.synchronize()
    assert on_host.tolist() == [0, 0, 0, 0]
    torch.cuda.synchronize()


def test_what_nobody_wrote_is_no_number():
    assert torch.empty(100, device="cuda").isnan().all()


def test_a_stream_that_does_not_wait_reads_what_is_not_there_yet():
    side = torch.cuda.Stream()
    numbers = torch.ones(1000, device="cuda")
    torch.cuda.synchronize()
    numbers += 1
    with torch.cuda.stream(side):
        early = numbers.clone()
        side.synchronize()
    assert early.unique().tolist() == [1.0]
    with torch.cuda.stream(side):
        side.wait_stream(torch.cuda.default_stream())
        late = numbers.clone()
        side.synchronize()
    assert late.unique().tolist() == [2.0]


def test_a_graph_reads_its_inputs_anew():
    x = torch.ones(3, device="cuda")
    weight = torch.nn.Conv2d(1, 1, 1).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = x * 2
        z = weight(y.view(1, 1, 1, 3))
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value] * 3
        torch.testing.assert_close(z, weight(y.view(1, 1, 1, 3)))


def test_a_synchronization_breaks_a_capture(without_faults):
    x = torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match=r"captur"), torch.cuda.graph(graph):
        x.sum().item()
    without_faults.append("cudaMemcpy in a capture")


def test_a_thread_that_pins_memory_does_not_break_a_capture():
    def double(x):
        other = threading.Thread(target=lambda: torch.empty(1 << 22, dtype=torch.uint8, pin_memory=True))
        other.start()
        other.join()
        return (x * 2,)

    graphs = GraphCache(double)
    for value in (1.0, 3.0):
        assert graphs(torch.full((2,), value, device="cuda"))[0].tolist() == [2 * value] * 2


def test_graphs_of_a_device_share_one_stream(monkeypatch):
    """A library keeps a workspace for every stream that it has seen."""
    made = []
    original = torch.cuda.Stream

    def stream(*arguments, **named):  # with arguments torch only wraps one that there is
        made.extend([] if arguments or named else [1])
        return original(*arguments, **named)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    graphs = GraphCache(lambda x: (x + 1,))
    for size in (2, 3, 4):
        assert graphs(torch.zeros(size, device="cuda"))[0].tolist() == [1.0] * size
    assert len(graphs) == 3 and len(made) == 1


@pytest.mark.parametrize("n", [1024, 1025, 2048, 2049, 4096])
def test_boxes_that_take_much_shared_memory(n):
    """Static and dynamic bytes together were more than the 48 KB of the default: no such call could run."""
    torch.manual_seed(0)
    corner = torch.rand(1, n, 2) * 500
    boxes = torch.cat([corner, corner + torch.rand(1, n, 2) * 90], 2)
    scores = torch.rand(1, n)
    wanted = frcnn_ops.nms_padded(boxes, scores, 0.5, 1000)
    found = frcnn_ops.nms_padded(boxes.cuda(), scores.cuda(), 0.5, 1000)
    assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_calls_are_recorded():
    x = torch.ones(8, device="cuda")
    _, rows = record(lambda: (x + 1).cpu())
    assert [row.kind for row in rows] == ["launch", "memcpy", "sync"]
    assert rows[0].op == "aten::add" and rows[1].bytes == 32


def test_the_table_of_launches_counts_what_was_launched():
    """benchmarks/count_launches.py, of a call that launches one kernel of ours and one of ATen's."""
    from benchmarks.count_launches import HEADER, counted

    boxes = torch.rand(500, 4, device="cuda")
    row = counted("overlaps", lambda: frcnn_ops.box_iou(boxes, boxes).add_(1).cpu())
    found = dict(zip(HEADER.split("|"), row, strict=True))
    assert (found["kernels, copies"], found["of them ours"], found["waits"]) == ("3", "1", "1")
    assert float(found["peak MB"]) >= 1  # a matrix of 500 x 500 float32


def test_two_threads_that_are_recorded_do_not_wait_for_each_other():
    def multiply(often):
        for _ in range(often):
            torch.mm(numbers, numbers)

    def upload(often):
        for _ in range(often):
            torch.ones(3).to("cuda")

    numbers = torch.ones(3, 3, device="cuda")
    threads = [threading.Thread(target=work, args=(300,), daemon=True) for work in (multiply, upload)]

    def run():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    _, rows = record(run)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(row.kind == "gemm" for row in rows) == 300
    assert sum(row.kind == "memcpy" for row in rows) == 300
