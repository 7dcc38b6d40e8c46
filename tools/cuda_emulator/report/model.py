"""From counters to a predicted time: a roofline. Nothing here was measured on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from counters import Launch
from sass import Kernel, issued

SOURCES = """\
An H100 SXM5: 132 multiprocessors and 3.35 TB/s from device memory (its data sheet); 1.755 GHz, 8.99 TB/s from
L2, latencies of 400 cycles to device memory, 20 to shared memory and 4 of arithmetic (table 3 of
doi:10.1016/j.ultsonch.2023.106546); per multiprocessor and cycle, 4 instructions of warps and 128 bytes from
shared memory or L1 (CUDA C++ programming guide, compute capability 9.0)."""

SECTOR = 32
SMS, CLOCK = 132, 1.755e9
DEVICE_BYTES, L2_BYTES = 3.35e12, 8.99e12
ISSUED = 4  # instructions of warps per multiprocessor and cycle
TO_DEVICE, TO_SHARED, ARITHMETIC = 400, 20, 4  # cycles


@dataclass(frozen=True)
class Prediction:
    """Seconds that each part takes by itself; a launch takes at least the longest of them."""

    instructions: float  # of all warps
    device: float
    l2: float
    issue: float
    shared: float
    longest_block: float

    @property
    def bound(self) -> str:
        parts = {"device memory": self.device, "L2": self.l2, "issue": self.issue,
                 "shared memory and L1": self.shared, "longest block": self.longest_block}  # fmt: skip
        return max(parts, key=lambda name: parts[name])

    @property
    def seconds(self) -> float:
        return max(self.device, self.l2, self.issue, self.shared, self.longest_block)


def predict(launch: Launch, kernel: Kernel) -> Prediction:
    """The roofline of one launch, without the time that it takes to launch."""
    instructions = sum(issued(kernel, launch.warps, launch.by_line()))
    wavefronts = sum(s.wavefronts for s in launch.sites_of(shared=True))
    # L1 gives 4 sectors of one request a cycle
    through_l1 = sum(max(s.sectors / 4, s.requests) for s in launch.sites_of(shared=False))
    # What a block cannot do faster however empty the machine is: issue its share of the instructions, wait
    # for memory once after each barrier, and for each collective of its busiest warp.
    own = instructions / launch.blocks * launch.longest_share
    schedulers = min(ISSUED, -(-launch.threads // 32))
    waits = (
        launch.longest_device_phases * TO_DEVICE
        + launch.longest_shared_phases * TO_SHARED
        + launch.longest_busiest_warp * ARITHMETIC
    )
    return Prediction(
        instructions=instructions,
        device=(launch.sectors_read + launch.sectors_written) * SECTOR / DEVICE_BYTES,
        l2=(launch.sectors_read_by_blocks + launch.sectors_written_by_blocks) * SECTOR / L2_BYTES,
        issue=instructions / (SMS * ISSUED) / CLOCK,
        shared=(wavefronts + through_l1) / SMS / CLOCK,
        longest_block=(max(own / schedulers, launch.longest_wavefronts) + waits) / CLOCK,
    )
