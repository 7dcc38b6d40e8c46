"""What each architecture refuses to launch, and that it refuses none of the operators at their real sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import resources

SHARED = {"7.5": 64, "8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99}
"""Architecture -> kilobytes of shared memory that a block can have if it asks."""
ARCHS = list(SHARED)
OK, INVALID_VALUE, INVALID_CONFIGURATION, OUT_OF_RESOURCES = 0, 1, 9, 701

LAUNCH = """
import ctypes, json, os, sys
library = ctypes.CDLL(os.environ["EMULATED_GPU_LIBRARY"])
class Dim(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]
codes = []
for number, launch in enumerate(json.loads(sys.argv[1])):
    function = ctypes.create_string_buffer(1)  # its address stands for the kernel
    name = launch["kernel"].encode()
    library.__cudaRegisterFunction(None, function, None, name, -1, None, None, None, None, None)
    if "allow" in launch:
        error = library.cudaFuncSetAttribute(function, 8, launch["allow"])
        if error:
            codes.append(error)
            continue
    grid, block, dynamic = Dim(*launch["grid"]), Dim(*launch["block"]), ctypes.c_size_t(launch["dynamic"])
    codes.append(library.cudaLaunchKernel(function, grid, block, None, dynamic, None))
print(json.dumps(codes))
"""


def run_on(arch, table, *words, computes=True):
    """Python with these words, on a device of this capability and this table of the kernels' resources; if it
    does not compute, launches are checked and nothing is run."""
    environment = {**os.environ, "EMULATED_GPU_ARCH": arch, "EMULATED_GPU_RESOURCES": str(table)}
    if not computes:
        del environment["EMULATED_GPU_KERNELS"]
    elsewhere = Path(table).parent  # Python looks for modules where it is, and this build is not in the clone
    child = subprocess.run(
        [sys.executable, *words], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return child


@pytest.fixture
def launch(tmp_path):
    """launch(arch, launches...): the error of each; a kernel's name has its registers and static bytes."""

    def call(arch, *launches):
        kernels = {one["kernel"] for one in launches}
        table = tmp_path / "resources.txt"
        table.write_text("".join(f"{name} {name.replace('_', ' ')[7:]}\n" for name in kernels))
        words = "-S", "-c", LAUNCH, json.dumps(launches)
        return json.loads(run_on(arch, table, *words, computes=False).stdout)

    return call


def one(registers=32, shared=0, grid=(1, 1, 1), block=(128, 1, 1), dynamic=0, **allow):
    return {
        "kernel": f"kernel_{registers}_{shared}",
        "grid": grid,
        "block": block,
        "dynamic": dynamic,
        **allow,
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_threads_of_a_block(launch, arch):
    launches = [
        one(block=block) for block in [(1024, 1, 1), (32, 32, 1), (1025, 1, 1), (32, 33, 1), (0, 1, 1)]
    ]
    launches += [one(block=(1, 1, 64)), one(block=(1, 1, 65))]
    bad = INVALID_CONFIGURATION
    assert launch(arch, *launches) == [OK, OK, bad, bad, bad, OK, bad]


@pytest.mark.parametrize("arch", ARCHS)
def test_blocks_of_a_grid(launch, arch):
    grids = [
        (2**31 - 1, 1, 1),
        (1, 65535, 1),
        (1, 1, 65535),
        (2**31, 1, 1),
        (1, 65536, 1),
        (1, 1, 65536),
        (1, 0, 1),
    ]
    bad = INVALID_CONFIGURATION
    assert launch(arch, *(one(grid=grid) for grid in grids)) == [OK, OK, OK, bad, bad, bad, bad]


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_memory_that_was_not_asked_for(launch, arch):
    kilo = 1 << 10
    launches = [one(dynamic=48 * kilo), one(dynamic=48 * kilo + 1), one(shared=672, dynamic=48 * kilo)]
    assert launch(arch, *launches) == [OK, INVALID_VALUE, INVALID_VALUE]


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_memory_that_was_asked_for(launch, arch):
    most = SHARED[arch] << 10
    launches = [
        one(dynamic=most, allow=most),
        one(allow=most + 1),
        one(shared=672, dynamic=most - 672, allow=most - 672),
        one(shared=672, allow=most - 671),
        one(registers=40, dynamic=50001, allow=50000),
    ]
    bad = INVALID_VALUE
    assert launch(arch, *launches) == [OK, bad, OK, bad, bad]


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_of_a_block(launch, arch):
    """A multiprocessor's quarter gives each of its warps a multiple of 256."""
    launches = [
        one(64, block=(1024, 1, 1)),
        one(65, block=(1024, 1, 1)),
        one(80, block=(768, 1, 1)),
        one(80, block=(800, 1, 1)),  # 64,000 registers, but a quarter has room for 6 warps
        one(255, block=(256, 1, 1)),
        one(255, block=(288, 1, 1)),
    ]
    bad = OUT_OF_RESOURCES
    assert launch(arch, *launches) == [OK, bad, OK, bad, OK, bad]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_operators_are_launched_at_their_real_sizes(arch):
    """With the registers and static shared memory that they have there; nothing is computed."""
    script = Path(__file__).with_name("launch_operators.py")
    child = run_on(arch, resources(arch), script, computes=False)
    found = json.loads(child.stdout.rpartition("found ")[2])
    refused = {name: faults for name, (faults, launched) in found.items() if faults or not launched}
    assert not refused, child.stderr[-3000:]
    assert len(found) >= 20


NMS = """
import torch, frcnn_ops
torch.manual_seed(0)
for n, dtype in ((2500, torch.float32), (1500, torch.float64)):
    corner = torch.rand(1, n, 2, dtype=dtype) * 500
    boxes = torch.cat([corner, corner + torch.rand(1, n, 2, dtype=dtype) * 90], 2)
    scores = torch.rand(1, n, dtype=dtype)
    wanted = frcnn_ops.nms_padded(boxes, scores, 0.5, 1000)
    found = frcnn_ops.nms_padded(boxes.cuda(), scores.cuda(), 0.5, 1000)
    assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, wanted)), n
"""


def test_nms_where_a_block_has_little_shared_memory():
    """Compute capability 7.5 gives a block 64 KB: a block takes half as many boxes, a chunk too."""
    run_on("7.5", resources("7.5"), "-c", NMS)


REFUSED = """
import torch, frcnn_ops
boxes, scores = torch.rand(1, 50, 4, device="cuda"), torch.rand(1, 50, device="cuda")
try:
    frcnn_ops.nms_padded(boxes, scores, 0.5, 10)
except RuntimeError as error:
    assert "nms: a block of the CUDA kernel needs more shared memory or registers" in str(error), error
else:
    raise SystemExit("the launch was not refused")
assert frcnn_ops.box_iou(boxes[0], boxes[0]).shape == (50, 50)
assert (scores + 1).shape == (1, 50)
"""


def test_a_refused_launch_is_the_fault_of_its_operator_alone(tmp_path):
    """NMS as if it took 255 registers; whoever launches next has done nothing wrong."""
    table = tmp_path / "resources.txt"
    lines = [line.split() for line in resources("9.0").read_text().splitlines()]
    table.write_text(
        "".join(f"{name} {255 if 'nms_block_kernel' in name else r} {s}\n" for name, r, s in lines)
    )
    run_on("9.0", table, "-c", REFUSED)


TOO_MUCH = """
import torch, frcnn_ops
logits, deltas = torch.randn(1, 3, 40, 40, device="cuda"), torch.randn(1, 12, 40, 40, device="cuda")
sizes, ones = torch.full((1, 2), 320.0, device="cuda"), (1.0, 1.0, 1.0, 1.0)
for pre_nms, count, said in (
    (2048, 2048, None),
    (2049, 10, "2049 anchors before NMS (pre_nms) are more than the CUDA kernel takes (2048); lower pre_nms"),
    (10, 2049, "2049 proposals (count) are more than the CUDA kernel takes (2048); lower count"),
):
    try:
        frcnn_ops.select_proposals(
            [logits], [deltas], sizes, [8], (8.0,), (0.5, 1.0, 2.0), ones, 0.0, 0.7, pre_nms, count
        )
        found = None
    except RuntimeError as error:
        found = str(error).splitlines()[0]
    assert found == (said and "select_proposals: " + said), found
torch.cuda.synchronize()
"""


def test_more_than_a_block_of_a_small_gpu_holds_is_said_so():
    """Compute capability 7.5 has no room for 4096 boxes; "invalid argument" would say nothing."""
    child = run_on("7.5", resources("7.5"), "-c", TOO_MUCH)
    assert "emulated GPU" not in child.stderr  # nothing was launched that the GPU has to refuse
