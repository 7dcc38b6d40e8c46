"""Every operator works on its arguments' device and that device's current stream, whichever is current."""

import pytest
import torch
from cuda_calls import OPS, SIZES, STRIDES, boxes, calls, run
from emulated_gpu import record

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")


def all_calls():
    """Those that make their output from numbers alone, or of a size that depends on values, too."""
    sizes = [n for size in SIZES for n in size]
    anchors = (sizes, STRIDES, [8.0], [0.5, 1.0, 2.0], 0.0)
    return {
        **calls(),
        "nms": (
            lambda boxes, scores, groups: OPS.nms(boxes, scores, groups, 0.5),
            {"boxes": boxes(200), "scores": torch.rand(200), "groups": torch.arange(200) % 3},
        ),
        "grid_anchors": (
            lambda device: OPS.grid_anchors(*anchors, device, None),
            {"device": torch.device("cpu")},
        ),
    }


def moved(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, torch.device):
        return device
    return [v.to(device) for v in value] if isinstance(value, list) else value


def on_device(call, device):
    return call[0], {name: moved(value, device) for name, value in call[1].items()}


@pytest.fixture
def cuda_0_is_current():
    yield
    for index in (1, 0):
        torch.cuda.set_stream(torch.cuda.default_stream(index))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", all_calls())
def test_an_operator_works_where_its_arguments_are(name, cuda_0_is_current):
    """cuda:0 is current all the while; what is launched, set and copied is on the arguments' device."""
    call = all_calls()[name]
    wanted = [result.cpu() for result in run(on_device(call, torch.device("cuda:0")))]
    for index, side in ((1, False), (1, True), (0, True)):
        device = torch.device("cuda", index)
        moved_call = on_device(call, device)
        stream = torch.cuda.Stream(device) if side else torch.cuda.default_stream(device)
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(stream)
        torch.cuda.set_device(0)
        found, rows = record(lambda: run(moved_call))  # noqa: B023
        work = [row for row in rows if row.kind in ("launch", "memset", "memcpy")]
        assert {(row.device, row.stream) for row in work} == {(index, stream.cuda_stream)}, work
        assert any("frcnn" in row.name for row in work)
        assert torch.cuda.current_device() == 0
        torch.cuda.synchronize(device)
        for result, same in zip(found, wanted, strict=True):
            assert result.device == device
            torch.testing.assert_close(result.cpu(), same, rtol=0, atol=0, equal_nan=True)
