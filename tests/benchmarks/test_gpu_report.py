"""The driver of the GPU report with parts that pass, fail, hang, die and leave children behind. No GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_markdown, gpu_report
from benchmarks.gpu_report import Part, Report, run

MACHINE = {
    "card": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory": 80e9, "torch": "2.11.0", "cuda": "13.0",
    "cudnn": 91900, "python": "3.12.3", "missing": ["tyro"], "cores": 16,
}  # fmt: skip


def python(name, script, seconds=60.0, **others):
    return Part(name, [sys.executable, "-c", script], seconds, **others)


@pytest.fixture
def report(tmp_path):
    made = Report(tmp_path / "out", tmp_path / "logs", "abc123", rehearsal=False)
    made.machine = dict(MACHINE)
    return made


def results(report):
    return {outcome.name: outcome.result for outcome in report.outcomes}


def ends(pid, seconds=10.0):
    """Whether a process is gone, or a zombie, soon."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_becomes_of_each_part(report):
    parts = [
        python("good", "print('=== 3 passed in 1s ===')"),
        python("bad", "print('first'); raise SystemExit(3)"),
        python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python("absent", "", missing="there is no such tool"),
    ]
    assert not run(parts, report, dict(os.environ))
    assert results(report) == {
        "good": "passed",
        "bad": "failed (exit code 3)",
        "killed": "killed by SIGKILL",
        "absent": "not run: there is no such tool",
    }
    text = (report.output / "report.md").read_text()
    assert text.startswith("# GPU report: NVIDIA H100 80GB HBM3, ")
    assert "| good | passed |" in text and "3 passed in 1s" in text
    assert "## The end of what bad printed\n\n```\nfirst\n```" in text
    assert "The end of what good" not in text
    assert "==== bad\nfirst" in (report.output / "logs.txt").read_text()


def test_parts_of_a_phase_run_at_the_same_time(report, tmp_path):
    """Each waits for the file of the other."""
    script = (
        "import pathlib, time, sys; mine, other = map(pathlib.Path, sys.argv[1:]); mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    parts = [
        Part("a", [sys.executable, "-c", script, *files], 60),
        Part("b", [sys.executable, "-c", script, *files[::-1]], 60),
    ]
    assert run(parts, report, dict(os.environ))


def test_a_part_that_hangs_is_ended_with_its_children(report, tmp_path):
    """It ignores the request to stop, and so does its child."""
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); print('begun', flush=True)\n"
        "time.sleep(600)"
    )
    assert not run([python("hangs", script, seconds=2.0)], report, dict(os.environ))
    assert results(report) == {"hangs": "out of time"}
    assert ends(int((tmp_path / "child").read_text()))
    assert "begun" in (report.output / "report.md").read_text()


def test_a_part_is_asked_to_stop_before_it_is_killed(report):
    script = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('I was at test 7')"
    run([python("slow", script, seconds=3.0)], report, dict(os.environ))
    assert "I was at test 7" in (report.output / "report.md").read_text()


def test_a_child_that_outlives_a_good_part_is_ended(report):
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid)"
    assert run([python("leaves", script)], report, dict(os.environ))
    assert ends(int(report.log("leaves")))


def test_a_killed_driver_leaves_what_there_is(tmp_path):
    """While the second part still runs, the first one's result is on the disk, each file whole."""
    script = f"""
import os, sys
sys.path.append({str(gpu_report.ROOT)!r})
from pathlib import Path
from benchmarks.gpu_report import Part, Report, run
report = Report(Path("out"), Path("logs"), "abc", False)
report.machine = {MACHINE!r}
run([Part("first", [sys.executable, "-c", "print('one')"], 60)], report, dict(os.environ))
child = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(600)"
run([Part("second", [sys.executable, "-c", child], 600)], report, dict(os.environ), every=0.1)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.DEVNULL)
    file = tmp_path / "out" / "results.json"
    deadline = time.monotonic() + 60
    began = tmp_path / "pid"
    while time.monotonic() < deadline and not (began.exists() and "running" in file.read_text()):
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    os.kill(int(began.read_text()), signal.SIGKILL)  # nobody else is left to do it
    found = {part["name"]: part["result"] for part in json.loads(file.read_text())["parts"]}
    assert found == {"first": "passed", "second": "running"}
    assert "| second | running |" in (tmp_path / "out" / "report.md").read_text()


def test_an_interrupted_driver_ends_its_parts(tmp_path):
    script = f"""
import os, signal, sys
sys.path.append({str(gpu_report.ROOT)!r})
from pathlib import Path
from benchmarks import gpu_report
from benchmarks.gpu_report import Part, Report, run
signal.signal(signal.SIGTERM, gpu_report.interrupted)
report = Report(Path("out"), Path("logs"), "abc", False)
child = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(600)"
run([Part("long", [sys.executable, "-c", child], 600)], report, dict(os.environ))
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    pid = tmp_path / "pid"
    while time.monotonic() < deadline and not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    driver.terminate()
    driver.wait(60)
    assert ends(int(pid.read_text()))
    assert "interrupted" in (tmp_path / "out" / "report.md").read_text()


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    """The main program on a torch that sees no device, whatever this machine has."""
    command = [sys.executable, "benchmarks/gpu_report.py", "--build", str(tmp_path / "build")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": ""}
    command += ["--output", str(tmp_path / "out")]
    driver = subprocess.run(command, cwd=gpu_report.ROOT, env=environment, capture_output=True, text=True)
    assert driver.returncode == 1
    assert "make gpu-report needs a CUDA device" in driver.stderr


def test_the_limits_leave_the_sweep_its_time(tmp_path):
    """Whatever the other parts take, the whole ends within nine minutes, and the sweep has three of them."""
    seconds = 40 + gpu_report.build_part("python", tmp_path, MACHINE, 1.0).seconds
    seconds += max(part.seconds for part in gpu_report.checks("python", MACHINE, False, 1.0))
    seconds += gpu_report.operators_part("python", tmp_path, False, 1.0).seconds
    assert gpu_report.SECONDS <= 9 * 60
    assert gpu_report.SECONDS - seconds - 5 * gpu_report.GRACE >= 150


def test_every_sanitizer_runs_the_operators_tests(monkeypatch):
    monkeypatch.setattr(gpu_report, "sanitizer", lambda: "/cuda/bin/compute-sanitizer")
    parts = {part.name: part for part in gpu_report.checks("python", MACHINE, False, 1.0)}
    assert set(parts) == {"tests", "verify", "memcheck", "racecheck", "initcheck", "synccheck"}
    for name in gpu_report.SANITIZERS:
        command = " ".join(parts[name].command)
        assert command.startswith(f"/cuda/bin/compute-sanitizer --tool {name} --error-exitcode 9 python ")
        assert "tests/ops/test_cuda_only.py" in command
    monkeypatch.setattr(gpu_report, "sanitizer", lambda: None)
    assert all(part.missing for part in gpu_report.checks("python", MACHINE, False, 1.0)[2:])


def row(mode="graph", batch=1, **result):
    return {"recipe": "faster_rcnn_r50_fpn_1x_coco", "precision": "bfloat16", "mode": mode, "batch": batch,
            **result}  # fmt: skip


def result(card, sweep):
    return {"date": "2026-11-24", "commit": "abc", "rehearsal": False, "parts": [], "sweep": sweep,
            "machine": {**MACHINE, "card": card}}  # fmt: skip


def test_the_tables_of_the_sweep():
    timing = {"median_ms": 2.5, "fps": 400.0, "peak_bytes": 5e8}
    rows = [row(**timing), row(batch=8, **timing), row("training", 2, **timing), row("compiled", error="oom")]
    text = gpu_markdown.report(result("NVIDIA H100", rows), {}, "# Operators\n\nnms")
    assert "| r50 | bfloat16 | graph | 2.50 | 400.0 | 500 | 2.50 | 400.0 | 500 |" in text
    assert "| r50 | bfloat16 | 2 | 2.50 | 400.0 | 500 |" in text
    assert "- r50, bfloat16, compiled, batch 1: oom" in text
    assert "\n## Operators\n\nnms" in text


def test_the_emulated_device_is_never_a_gpu():
    timing = {"median_ms": 2.5, "fps": 400.0, "peak_bytes": 5e8}
    text = gpu_markdown.report(result("emulated GPU sm_90", [row(**timing)]), {}, "")
    assert text.startswith("# GPU report: emulated device: no figure below is a GPU's")
    assert "## Detection (emulated device: these are no GPU's figures)" in text
