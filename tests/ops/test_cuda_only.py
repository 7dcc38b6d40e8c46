"""What only a GPU can show: graphs, no synchronization, repeatable bits, streams, half, torch.compile.

Agreement with the CPU in float32 and float64 is shown by the other files here, which run on every device, and
without a GPU by tests/cpp.
"""

from __future__ import annotations

import pytest
import torch
from cuda_calls import OPS, SIZES, STRIDES, boxes, calls, run, to_gpu
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import frcnn_ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EMULATED = torch.cuda.is_available() and torch.cuda.get_device_name().startswith("emulated")
"""tools/cuda_emulator: it compiles nothing, and takes minutes for a GPU's milliseconds."""

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The device's exp and log differ from the host's in the last bits, and sums are taken in another order.
TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
NAMES = list(calls())


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_cpu(name, dtype):
    call = calls(dtype)[name]
    for want, got in zip(run(call), run(to_gpu(call)), strict=True):
        assert got.is_cuda and got.dtype == want.dtype and got.stride() == want.stride()
        if want.is_floating_point():
            torch.testing.assert_close(got.cpu(), want, **TOLERANCES[want.dtype])
        else:
            assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_roi_align_of_nchw_features(dtype):
    function, arguments = calls(dtype)["roi_align"]
    arguments = {**arguments, "features": [f.contiguous() for f in arguments["features"]]}
    (want,), (got,) = run((function, arguments)), run(to_gpu((function, arguments)))
    assert got.is_contiguous()
    torch.testing.assert_close(got.cpu(), want, **TOLERANCES[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_does_not_synchronize(name):
    call = to_gpu(calls(torch.float16)[name])
    run(call)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def refill(arguments, others):
    """Copy the tensors among other arguments into the tensors of these."""
    for old, new in zip(tree_leaves(arguments), tree_leaves(others), strict=True):
        if isinstance(old, torch.Tensor):
            old.copy_(new)


@pytest.mark.parametrize("name", NAMES)
def test_can_be_captured_into_a_graph(name):
    """The replay reads the inputs anew, and gives what a call outside a graph gives."""
    function, inputs = to_gpu(calls(torch.float16, seed=0)[name])
    others = to_gpu(calls(torch.float16, seed=1)[name])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run((function, inputs))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run((function, inputs))
    refill(inputs, others[1])
    graph.replay()
    assert same_bits(captured, run(others))


def test_anchors_can_be_captured_into_a_graph():
    def anchors():
        return torch.cat(frcnn_ops.grid_anchors(SIZES, STRIDES, device="cuda"))

    want = anchors()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = anchors()
    graph.replay()
    assert torch.equal(got, want)
    assert torch.equal(want.cpu(), torch.cat(frcnn_ops.grid_anchors(SIZES, STRIDES, device="cpu")))


@pytest.mark.parametrize("name", NAMES)
def test_repeats_to_the_bit(name):
    call = to_gpu(calls(torch.float16)[name])
    torch.use_deterministic_algorithms(True)
    try:
        first = run(call)
        assert all(same_bits(run(call), first) for _ in range(10))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", NAMES)
def test_uses_the_current_stream(name):
    """Behind a long kernel on the same stream, an operator sees that kernel's result."""
    function, arguments = to_gpu(calls(torch.float16)[name])
    want = run((function, arguments))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = tree_map_only(torch.Tensor, torch.zeros_like, arguments)
        torch.cuda._sleep(20_000_000)
        refill(late, arguments)
        got = run((function, late))
    torch.cuda.current_stream().wait_stream(side)
    assert same_bits(got, want)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("n", [1, 1000, 1025, 2000, 2048, 2049, 4096, 4097, 5000 if EMULATED else 30000])
def test_nms_of_any_size(n, grouped):
    torch.manual_seed(n)
    b, scores = boxes(n, 1500.0), (torch.rand(n) * 50).round() / 50
    groups = torch.randint(0, 5, (n,)) if grouped else torch.zeros(n, dtype=torch.int64)
    want = frcnn_ops.batched_nms(b, scores, groups, 0.5)
    got = frcnn_ops.batched_nms(b.cuda(), scores.cuda(), groups.cuda(), 0.5)
    assert torch.equal(got.cpu(), want)


@pytest.mark.skipif(EMULATED, reason="minutes")
def test_nms_of_100000_boxes_takes_little_memory():
    b, scores = boxes(100_000, 5000.0).cuda(), torch.rand(100_000, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    frcnn_ops.nms(b, scores, 0.5)
    assert torch.cuda.max_memory_allocated() - before < 32 << 20


def test_assignment_takes_little_memory():
    anchors, gts = boxes(268_569, 1300.0).cuda(), boxes(100, 1300.0).cuda()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    frcnn_ops.assign_max_iou(anchors, gts, 0.7, 0.3, 0.3)
    assert torch.cuda.max_memory_allocated() - before < 5 << 20


@pytest.mark.skipif(EMULATED, reason="needs a GPU to compile for")
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(name):
    function, arguments = to_gpu(calls()[name])
    compiled = torch.compile(lambda **kw: function(**kw), fullgraph=True)
    want = run((function, arguments))
    for x, y in zip(run((compiled, arguments)), want, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_of_roi_align_repeats_and_agrees(dtype, channels_last):
    """Through autograd, in both memory formats."""
    _, arguments = calls(dtype)["roi_align"]

    def gradients(device: str) -> list[Tensor]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        features = [
            f.to(device).contiguous(memory_format=layout).requires_grad_() for f in arguments["features"]
        ]
        out = frcnn_ops.pyramid_roi_align(features, arguments["rois"].to(device), 7, [4, 8, 16, 32])
        (out.float() ** 2).sum().backward()
        return [f.grad for f in features]

    on_cuda = gradients("cuda")
    assert same_bits(on_cuda, gradients("cuda"))
    scale = max(g.abs().max().item() for g in on_cuda)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for got, want in zip(on_cuda, gradients("cpu"), strict=True):
        assert (got.cpu().float() - want.float()).abs().max() <= tolerance * scale


def test_too_many_images_are_named():
    gts = torch.zeros(65536, 1, 4, device="cuda")
    counts = torch.ones(65536, dtype=torch.int64, device="cuda")
    with pytest.raises(RuntimeError, match=r"assign_max_iou: 65536 images .*\(65535\); split the call"):
        OPS.assign_max_iou(gts[0], gts, counts, None, None, 0.5, 0.4, 0.3, True, 0.5)


def one_number(*shape, dtype=torch.float32):
    """A tensor of many elements that are one in memory."""
    return torch.zeros((), dtype=dtype, device="cuda").expand(shape)


def proposals(images, pre_nms=10, count=10):
    OPS.select_proposals(
        [one_number(images, 1, 1, 1)], [one_number(images, 4, 1, 1)], one_number(images, 2), [4.0], [8.0],
        [1.0], 0.0, [1.0] * 4, 0.0, 0.7, pre_nms, count,
    )  # fmt: skip


def detections(images, each=1, most=10):
    OPS.select_detections(
        one_number(images, each, 2), one_number(images, each, 4), one_number(images, each, 4),
        one_number(images, each, dtype=torch.bool), one_number(images, 2), one_number(images, 2), [1.0] * 4,
        0.05, 0.5, most,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proposals(65536), r"select_proposals: 65536 images .*\(65535\); split the call"),
        (lambda: proposals(1, 4097), r"4097 anchors before NMS \(pre_nms\) .*\(4096\); lower pre_nms"),
        (lambda: proposals(1, 10, 4097), r"4097 proposals \(count\) .*\(4096\); lower count"),
        (lambda: detections(65536), r"select_detections: 65536 images .*\(65535\); split the call"),
        (lambda: detections(1, 4097), r"4097 proposals per image .*\(4096\); give it fewer"),
        (lambda: detections(1, 1, 4097), r"4097 detections per image .*; lower max_detections"),
        (
            lambda: OPS.normalize_images(
                one_number(1, 65536, 32769, 3, dtype=torch.uint8), one_number(1, 2), [0.0] * 3, [1.0] * 3,
                False, torch.float32,
            ),
            r"normalize_images: 2147549184 pixels of images .*\(2147483647\); split the call",
        ),
        (
            lambda: OPS.resize_images([one_number(2, 2, 3, dtype=torch.uint8)], [2, 2], 32766, 65600),
            r"resize_images: 2149449600 pixels .*; lower height or width",
        ),
        (
            lambda: OPS.conv_epilogue(one_number(1, 1, 65536, 32769), one_number(1), None, True),
            r"conv_epilogue: 2147549184 packs of x .*; give it fewer images",
        ),
        (
            lambda: OPS.relu_bias_gradient(one_number(1, 1, 65536, 32769), one_number(1, 1, 65536, 32769)),
            r"relu_bias_gradient: 2147549184 cells of grad .*; give it fewer images",
        ),
    ],
)  # fmt: skip
def test_a_limit_is_named_with_its_argument_and_a_remedy(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_too_many_levels_scales_and_ratios_are_named():
    sizes = [1, 1] * 17
    for name, strides, scales, ratios in [
        ("levels", [4.0] * 17, [8.0], [1.0]),
        ("scales", [4.0], [8.0] * 17, [1.0]),
        ("ratios", [4.0], [8.0], [1.0] * 17),
    ]:
        with pytest.raises(RuntimeError, match=rf"grid_anchors: 17 {name} .*\(16\); split the call"):
            OPS.grid_anchors(
                sizes[: 2 * len(strides)], strides, scales, ratios, 0.0, torch.device("cuda"), None
            )


@pytest.mark.parametrize(
    ("shape", "sizes", "batch", "message"),
    [
        ((1, 65535 * 32 + 1, 1, 1), [1, 1], 1, r"2097121 channels of grad .*\(2097120\); split the call"),
        ((1, 1, 1, 1), [1, 9] * 16, 2**27, r"4294967296 tiles .* batch images .*\(2147483647\); split"),
        ((1, 1, 400, 113), [1, 1], 1, r"output_size \(400, 113\) is larger .*at most 512"),
    ],
)
def test_a_gradient_that_is_too_large_for_a_grid_says_in_what(shape, sizes, batch, message):
    """Before anything is allocated; CUDA alone would say "invalid argument"."""
    grad, rois = torch.zeros(shape, device="cuda"), torch.zeros(1, 5, device="cuda")
    with pytest.raises(RuntimeError, match="roi_align_backward: " + message):
        OPS.roi_align_backward(grad, rois, sizes, batch, [1.0] * (len(sizes) // 2), 0, True, 56.0)
