"""The emulator sees every bug that planted.cu plants, and nothing in the same kernels without the bug."""

import re
import subprocess
import sys

import emulated
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no C++20 compiler (g++ 11 or newer)")
needs_sanitizer = pytest.mark.skipif(emulated.sanitizer() is None, reason="no address sanitizer (libasan)")

BUGS = {
    name: i
    for i, name in enumerate(
        "none missing_barrier missing_warp_barrier race out_of_bounds uninitialized divergent_barrier "
        "missing_fence shared_out_of_bounds misaligned fence_too_early write_after_release missing_acquire "
        "acquire_too_early".split()
    )
}
BLOCKS = 3
VALUES = np.arange(BLOCKS * 64, dtype=np.float32)


def run(kernel: str, bug: str, seed: int) -> np.ndarray:
    with emulated.device(seed) as d:
        source = d.put(VALUES)
        if kernel in ("sum", "sum_threads", "chain"):
            out, partial, counter = d.empty(1), d.empty(BLOCKS * 64), d.empty(2, np.uint32)
            d.call(f"planted_{kernel}", source, partial, counter, out, BLOCKS, BUGS[bug])
        elif kernel == "publish":
            out = d.empty(BLOCKS)
            d.call("planted_publish", d.empty(1), d.empty(1, np.uint32), out, BLOCKS, BUGS[bug])
        elif kernel == "copy":
            out = d.empty(256)
            d.call("planted_copy", d.put(np.zeros(256, np.float32)), out, BUGS[bug])
        else:
            out = d.empty(BLOCKS * 64)
            d.call(f"planted_{kernel}", source, out, BLOCKS, BUGS[bug])
        return d.get(out)


@pytest.mark.parametrize("seed", range(4))
def test_sound_kernels_pass(seed):
    blocks = VALUES.reshape(BLOCKS, 64)
    assert np.array_equal(run("reverse", "none", seed), blocks[:, ::-1].ravel())
    assert np.array_equal(run("swap", "none", seed), VALUES.reshape(-1, 2)[:, ::-1].ravel())
    for kernel in ("sum", "sum_threads", "chain"):
        assert run(kernel, "none", seed) == VALUES.sum()
    assert set(run("publish", "none", seed)) <= {-1, 7}
    assert np.array_equal(run("copy", "none", seed), np.zeros(256))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("kernel", "bug", "report"),
    [
        ("reverse", "missing_barrier", "race|uninitialized read of 4 bytes of shared memory"),
        ("swap", "missing_warp_barrier", "race|uninitialized read of 4 bytes of shared memory"),
        ("sum", "race", "race: (read|write) of 4 bytes of device memory"),
        ("sum", "missing_fence", "race: read of 4 bytes of device memory"),
        ("sum", "fence_too_early", "race: read of 4 bytes of device memory"),
        ("sum", "write_after_release", "(race: read|uninitialized read) of 4 bytes of device memory"),
        ("sum", "missing_acquire", "race: read of 4 bytes of device memory"),
        ("sum", "acquire_too_early", "race: read of 4 bytes of device memory"),
        ("sum_threads", "missing_fence", "race: read of 4 bytes of device memory"),
        ("sum_threads", "missing_acquire", "race: read of 4 bytes of device memory"),
        ("chain", "missing_fence", "race: read of 4 bytes of device memory"),
        ("chain", "fence_too_early", "race: read of 4 bytes of device memory"),
        ("chain", "missing_acquire", "race: read of 4 bytes of device memory"),
        ("reverse", "out_of_bounds", "out-of-bounds write of 4 bytes of device memory"),
        ("reverse", "shared_out_of_bounds", "out-of-bounds write of 4 bytes of shared memory"),
        ("reverse", "uninitialized", "uninitialized read of 4 bytes of shared memory"),
        ("reverse", "divergent_barrier", "different barriers|deadlock|race|uninitialized"),
        (
            "copy",
            "misaligned",
            r"misaligned read of '.*float4': .*multiple of 16 but of 4, at .*planted.cu:\d+",
        ),
    ],
)
def test_planted_bugs_are_reported(kernel, bug, report, seed):
    with pytest.raises(emulated.KernelFault, match=report):
        run(kernel, bug, seed)


@pytest.mark.parametrize("bug", ["missing_fence", "fence_too_early", "missing_acquire", "acquire_too_early"])
def test_publishing_without_a_fence_is_reported_when_a_block_is_told(bug):
    """Which depends on the order of blocks; where none is told, nothing was wrong."""
    reported = 0
    for seed in range(12):
        try:
            assert -1 in run("publish", bug, seed)
        except emulated.KernelFault as fault:
            assert "race: read of 4 bytes of device memory" in str(fault)
            reported += 1
    assert reported > 0


def test_publishing_is_seen_by_some_blocks_and_not_by_others():
    """The blocks run in turns, in an order that the seed draws."""
    seen = {tuple(run("publish", "none", seed)[1:]) for seed in range(24)}
    assert seen == {(-1, -1), (-1, 7), (7, -1), (7, 7)}


def test_late_stores_move_the_result():
    """Without a fence, the last block also reads what was there before other blocks' stores."""

    def result(bug: str, seed: int) -> float:
        with emulated.device(seed) as d:
            out, partial, counter = d.empty(1), d.put(np.zeros(BLOCKS, np.float32)), d.empty(1, np.uint32)
            source = d.put(VALUES)
            with pytest.raises(emulated.KernelFault):
                d.call("planted_sum", source, partial, counter, out, BLOCKS, BUGS[bug])
            return float(d.get(out)[0])

    for bug in ("missing_fence", "fence_too_early"):
        assert any(result(bug, seed) < VALUES.sum() for seed in range(60)), bug


def test_missing_barrier_moves_the_result():
    """What the checker reports also shows: the order of threads decides what a thread reads."""

    def result(seed: int) -> bytes:
        with emulated.device(seed) as d:
            out = d.empty(64)
            source = d.put(VALUES[:64])
            with pytest.raises(emulated.KernelFault):
                d.call("planted_reverse", source, out, 1, BUGS["missing_barrier"])
            return d.get(out).tobytes()

    assert len({result(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("kernel", "bug", "report"),
    [
        ("reverse", "none", ""),
        ("reverse", "out_of_bounds", "AddressSanitizer: heap-buffer-overflow"),
        ("reverse", "shared_out_of_bounds", "runtime error: index 64 out of bounds"),
        ("copy", "misaligned", "runtime error: .*misaligned address"),
    ],
)
@needs_sanitizer
def test_planted_bugs_stop_the_sanitized_build(kernel, bug, report):
    emulated.build("sanitized")
    code = f"from test_emulator import run; run({kernel!r}, {bug!r}, 0)"
    environment = {**emulated.sanitized_environment(), "FRCNN_EMULATED": "sanitized"}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=emulated.HERE, env=environment, text=True, capture_output=True
    )
    if bug == "none":
        assert child.returncode == 0, child.stderr
    else:
        assert child.returncode != 0
        assert re.search(report, child.stderr), child.stderr
