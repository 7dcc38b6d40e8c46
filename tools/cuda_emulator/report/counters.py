"""What the emulator counts of a launch, by kernel and by line of its source."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emulated
from sass import Line, short


@dataclass(frozen=True)
class Site:
    """Accesses from one place in the code. Sums over all requests; see counters.cpp for what they are."""

    line: Line
    kind: int  # 0 read, 1 write, 2 atomic
    shared: bool
    bytes: int
    requests: int
    lanes: int
    sectors: int
    lines: int
    useful: int
    wavefronts: int
    least_wavefronts: int


@dataclass(frozen=True)
class Launch:
    """One launch. `longest_*` is of the block with the most requests and collectives."""

    kernel: str
    blocks: int
    threads: int
    requests: int
    collectives: int
    longest_requests: int
    longest_collectives: int
    longest_wavefronts: int
    longest_barriers: int
    longest_device_phases: int
    longest_shared_phases: int
    longest_busiest_warp: int
    sectors_read: int
    sectors_read_by_blocks: int
    sectors_written: int
    sectors_written_by_blocks: int
    lines: int
    sites: tuple[Site, ...]

    @property
    def warps(self) -> int:
        return self.blocks * -(-self.threads // 32)

    @property
    def longest_share(self) -> float:
        """The longest block's work against the mean block's."""
        work = self.requests + self.collectives
        return (self.longest_requests + self.longest_collectives) * self.blocks / work if work else 1.0

    def sites_of(self, shared: bool) -> list[Site]:
        return [s for s in self.sites if s.shared == shared]

    def by_line(self) -> dict[tuple[Line, bool], tuple[float, int]]:
        """(line, shared) -> requests, and the bytes of one of its accesses."""
        result: dict[tuple[Line, bool], tuple[float, int]] = {}
        for s in self.sites:
            before = result.get((s.line, s.shared), (0, s.bytes))
            result[s.line, s.shared] = before[0] + s.requests, s.bytes
        return result


@cache
def functions() -> dict[int, str]:
    """Kernels of the counted build by their place in its library."""
    listed = subprocess.run(
        ["nm", "-C", str(emulated.build("counted"))], check=True, text=True, capture_output=True
    ).stdout
    rows = (line.split(" ", 2) for line in listed.splitlines() if line[:1] != " ")
    return {int(address, 16): short(name) for address, _, name in rows}


def lines_of(places: list[int]) -> list[Line]:
    """The source lines of code at these places of the library."""
    if not places:
        return []
    lines = []
    for text in emulated.source_lines(str(emulated.build("counted")), [hex(p) for p in places]):
        file, _, number = text.rpartition(":")
        lines.append((Path(file).name, int(number) if number.isdigit() else 0))
    return lines


def count(run: Callable[[], object]) -> list[Launch]:
    """The launches of `run`, which calls launchers of the counted build."""
    take = emulated.load("counted").emulator_counts
    take.restype = ctypes.c_char_p
    take()
    run()
    launches: list[Launch] = []
    sites: list[list[int]] = []
    for text in take().decode().splitlines():
        what, *numbers = text.split("\t")
        row = [int(n) for n in numbers]
        if what == "site":
            sites.append(row)
            continue
        launches.append(Launch(functions()[row[0]], *row[1:], sites=()))
        sites.append([])
    return _with_sites(launches, sites)


def _with_sites(launches: list[Launch], rows: list[list[int]]) -> list[Launch]:
    """rows: an empty one for every launch, followed by its sites."""
    lines = iter(lines_of([row[0] for row in rows if row]))
    result: list[Launch] = []
    waiting = iter(launches)
    sites: list[Site] = []
    current: Launch | None = None
    for row in [*rows, []]:
        if row:
            sites.append(Site(next(lines), row[1], bool(row[2]), *row[3:]))
            continue
        if current is not None:
            result.append(Launch(**{**vars(current), "sites": tuple(sites)}))
        current, sites = next(waiting, None), []
    return result
