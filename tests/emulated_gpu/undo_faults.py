"""Puts each fault that was found and mended back into a copy, and says whether a test notices.

python tests/emulated_gpu/undo_faults.py            all of them, about a minute each
python tests/emulated_gpu/undo_faults.py stream     those with this word in their name
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Fault(NamedTuple):
    name: str
    file: str
    mended: str
    faulty: str
    tests: str
    """That are run; at least one of them has to fail."""


DETECTOR, DEVICE = "tests/emulated_gpu/test_detector.py", "tests/emulated_gpu/test_device.py"
TRAINING, PROCESSES = "tests/emulated_gpu/test_training.py", "tests/emulated_gpu/test_processes.py"
FAULTS = [
    Fault(
        "limit of shared memory left at its default",
        "csrc/cuda/launch.h",
        "if (shared_bytes > 0) {",
        "if (shared_bytes > (48 << 10)) {",
        DEVICE,
    ),
    Fault(
        "kernels on the default stream",
        "csrc/bindings/binding.h",
        "return c10::cuda::getCurrentCUDAStream().stream();",
        "return nullptr;",
        "tests/ops/test_cuda_only.py",
    ),
    Fault(
        "operators without a device guard",
        "csrc/bindings/box_iou.cpp",
        "  const c10::DeviceGuard guard(a.device());",
        "",
        DEVICE,
    ),
    Fault(
        "the error of a refused launch left for the next operator",
        "csrc/bindings/binding.h",
        "  (void)cudaGetLastError();",
        "  //",
        DEVICE,
    ),
    Fault(
        "event of the current device, not the model's",
        "frcnn/inference/stream.py",
        "with torch.cuda.device(self.device) if on_gpu else nullcontext():",
        "with nullcontext():",
        DETECTOR,
    ),
    Fault(
        "captures that other threads break",
        "frcnn/inference/cuda_graph.py",
        'capture_error_mode="thread_local"',
        'capture_error_mode="global"',
        DEVICE,
    ),
    Fault(
        "verification without cuDNN",
        "frcnn/zoo/verify.py",
        'with float32_arithmetic("float32", device):',
        "with torch.backends.cudnn.flags(enabled=False):",
        DETECTOR,
    ),
    Fault(
        "an upload in the losses, which stalls",
        "frcnn/roi_head.py",
        "unit = F.pad(boxes.new_zeros(2), (0, 2), value=1.0)",
        "unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])",
        TRAINING,
    ),
    Fault(
        "numbers uploaded from pageable memory",
        "frcnn/structures.py",
        "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.to(device)",
        TRAINING,
    ),
    Fault(
        "numbers of a training step read at once",
        "frcnn/engine/step.py",
        "torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)",
        "numbers.cpu()",
        TRAINING,
    ),
    Fault(
        "a step that is not finite and is taken",
        "frcnn/engine/step.py",
        "found_inf = torch.maximum(self.broken, unsound)",
        "found_inf = torch.zeros_like(self.broken)",
        TRAINING,
    ),
    Fault(
        "a step that is not finite and only it is not taken",
        "frcnn/engine/step.py",
        "self.broken = torch.maximum(self.broken, breaks)",
        "self.broken = breaks",
        TRAINING,
    ),
    Fault(
        "a loss that is not finite in one process only",
        "frcnn/engine/step.py",
        'self.processes.highest_on_device((~numbers.isfinite().all()).float(), "the losses")',
        "(~numbers.isfinite().all()).float()",
        PROCESSES,
    ),
    Fault(
        "counts read before they are there",
        "frcnn/inference/stream.py",
        "ready.synchronize()",
        "pass",
        DETECTOR,
    ),
]


def noticed(fault: Fault) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "frcnn"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in files.stdout.split():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)  # with its time: only what is changed is compiled again
        shutil.copytree(ROOT / "build" / "emulated-gpu", copy / "build" / "emulated-gpu")
        shutil.copytree(ROOT / "build" / "emulated", copy / "build" / "emulated")
        file = copy / fault.file
        text = file.read_text()
        assert fault.mended in text, f"{fault.file} has no {fault.mended!r}: mend this list"
        file.write_text(text.replace(fault.mended, fault.faulty))
        command = ["make", "-C", str(copy), "test-gpu-emulated", f"GPU_TESTS={fault.tests}", "TEST_ARGS=-x"]
        run = subprocess.run(command, capture_output=True, text=True)
        return run.returncode != 0 and " failed" in run.stdout


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = []
    for fault in FAULTS:
        if wanted in fault.name:
            found = noticed(fault)
            print(f"{'noticed' if found else 'MISSED '}  {fault.name}", flush=True)
            missed += [] if found else [fault.name]
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
