"""The counters of the emulator and of compiled kernels count what is known of small examples."""

from __future__ import annotations

import sys

import emulated
import numpy as np
import pytest
import torch

sys.path += [str(emulated.EMULATOR / "report"), str(emulated.EMULATOR.parents[1])]

import counters
import sass
import workloads

from benchmarks.op_cases import Image

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no C++20 compiler (g++ 11 or newer)")


def launch_of(name: str, *arguments: object) -> counters.Launch:
    """arguments: for the launcher; arrays go to the device."""

    def run() -> None:
        with emulated.Device(emulated.load("counted"), 0) as d:
            d.call(name, *(d.put(a) if isinstance(a, np.ndarray) else a for a in arguments))

    (launch,) = counters.count(run)
    return launch


# 32 threads: sectors of 32 bytes, lines of 128 and wavefronts over 32 banks
@pytest.mark.parametrize(
    ("stride", "sectors", "lines", "wavefronts"), [(1, 4, 1, 1), (2, 8, 2, 2), (8, 32, 8, 8), (31, 32, 31, 1)]
)
def test_strides(stride, sectors, lines, wavefronts):
    launch = launch_of("planted_strided", np.zeros(1024, np.float32), 1, stride)
    (device,), (shared,) = launch.sites_of(shared=False), launch.sites_of(shared=True)
    assert launch.kernel == "strided_kernel" and device.line[0] == "planted.cu"
    assert (device.requests, device.lanes, device.sectors, device.lines) == (1, 32, sectors, lines)
    assert device.useful == 128
    assert (shared.wavefronts, shared.least_wavefronts) == (wavefronts, 1)
    assert launch.sectors_written == sectors and launch.sectors_read == 0


def test_blocks_that_touch_the_same_memory():
    launch = launch_of("planted_strided", np.zeros(1024, np.float32), 3, 1)
    assert launch.blocks == 3 and launch.warps == 3
    assert (launch.sectors_written, launch.sectors_written_by_blocks) == (4, 12)
    assert launch.longest_share == 1


def test_longest_block():
    """The block that finishes last also adds up what all have done."""
    values = np.zeros(64 * 4, np.float32)
    launch = launch_of(
        "planted_sum", values, np.zeros(4, np.float32), np.zeros(1, np.uint32), values[:1], 4, 0
    )
    assert launch.longest_share > 1
    assert launch.longest_requests > launch.requests / 4


def test_no_block_of_roi_aligns_gradient_takes_much_longer_than_the_others(monkeypatch):
    """Whether its 2 x 512 RoIs lie around 60 objects, 7, or one that is small; full size, 8 channels."""
    monkeypatch.setenv("FRCNN_EMULATED", "counted")
    monkeypatch.setattr(workloads, "CHANNELS", 8)
    image = Image(800, 1344, torch.device("cpu"))
    gradients = [w for w in workloads.pooling(image) if "RoIAlign gradient" in w.name]
    assert len(gradients) == 3
    for workload in gradients:
        (tiles,) = [launch for launch in counters.count(workload.run) if "tile_kernel" in launch.kernel]
        assert tiles.longest_share < 2.5, workload.name


LISTING = """
.text._Z4loopv:
\t//## File "/x/csrc/cuda/a.cu", line 3
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
\t//## File "/x/include/atomic.hpp", line 9 inlined at "/x/csrc/cuda/a.cu", line 5
\t//## File "/x/csrc/cuda/a.cu", line 5
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   FFMA R8, R4, R5, R8 ;
        /*0030*/               @P1 BRA `(.L_x_2) ;
\t//## File "/x/csrc/cuda/a.cu", line 6
        /*0040*/                   STS [R0], R8 ;
.L_x_2:
        /*0050*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0060*/               @P0 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   FADD R1, R1, R1 ;
        /*0090*/                   BRA `(.L_x_2) ;
"""


@pytest.mark.parametrize(("loads", "stores", "inside"), [(10.0, 10.0, 60.0), (10.0, 2.0, 52.0)])
def test_instructions_of_a_loop(loads, stores, inside):
    """A loop is found by its branch back, and its parts run as often as their accesses were counted."""
    kernel = sass.Kernel("loop", 8, 0, 0, sass.find_loops(sass.parse(LISTING)["_Z4loopv"]))
    whole, loop = kernel.loops
    assert loop.parent is whole and len(loop.own) == 6
    assert loop.classes == {"device": 1, "fp32": 1, "control": 2, "shared": 1, "integer": 1}
    counted = {(("a.cu", 5), False): (loads, 16), (("a.cu", 6), True): (stores, 4)}
    assert sass.issued(kernel, 1, counted)[1] == inside
