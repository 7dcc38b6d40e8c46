"""Puts each fault that was found and mended back into a copy, and says whether a test notices.

python tests/emulated_gpu/undo_faults.py               all of them, an hour
python tests/emulated_gpu/undo_faults.py stream DDP    those with one of these words in their name
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
    """That have to fail, one of them at least."""


DETECTOR, DEVICE = "tests/emulated_gpu/test_detector.py", "tests/emulated_gpu/test_device.py"
TRAINING, PROCESSES = "tests/emulated_gpu/test_training.py", "tests/emulated_gpu/test_processes.py"
LAUNCHES = "tests/emulated_gpu/test_launches.py"
ON_CUDA = "tests/ops/test_cuda_only.py"
GUARD = "tests/emulated_gpu/test_guards.py::test_an_operator_works_where_its_arguments_are"
KERNELS = "tests/cpp/test_kernels.py::test_agrees_with_the_cpu_operator"
FAULTS = [
    Fault(
        "limit of shared memory left at its default",
        "csrc/cuda/launch.h",
        "if (shared_bytes > 0) {",
        "if (shared_bytes > (48 << 10)) {",
        f"{DEVICE}::test_boxes_that_take_much_shared_memory",
    ),
    Fault(
        "kernels on the default stream",
        "csrc/bindings/binding.h",
        "return static_cast<FrcnnStream>(handle);",
        "return nullptr;",
        f"{ON_CUDA}::test_uses_the_current_stream",
    ),
    Fault(
        "the error of a refused launch left for the next operator",
        "csrc/bindings/binding.h",
        "  (void)cudaGetLastError();",
        "  //",
        f"{LAUNCHES}::test_a_refused_launch_is_the_fault_of_its_operator_alone",
    ),
    Fault(
        "event of the current device, not the model's",
        "frcnn/inference/stream.py",
        "with torch.cuda.device(self.device) if on_gpu else nullcontext():",
        "with nullcontext():",
        f"{DETECTOR}::test_a_model_on_the_second_device",
    ),
    Fault(
        "captures that other threads break",
        "frcnn/inference/cuda_graph.py",
        'capture_error_mode="thread_local"',
        'capture_error_mode="global"',
        f"{DEVICE}::test_a_thread_that_pins_memory_does_not_break_a_capture",
    ),
    Fault(
        "verification without cuDNN",
        "frcnn/zoo/verify.py",
        'with float32_arithmetic("float32", device):',
        "with torch.backends.cudnn.flags(enabled=False):",
        f"{DETECTOR}::test_a_reference_case_is_reached_through_cudnn[r50_giou]",
    ),
    Fault(
        "verification in TF32",
        "frcnn/zoo/verify.py",
        'with float32_arithmetic("float32", device):',
        'with float32_arithmetic("tf32", device):',
        f"{DETECTOR}::test_a_reference_case_is_reached_through_cudnn[r50_giou]",
    ),
    Fault(
        "detections that come to the host one by one",
        "frcnn/inference/stream.py",
        "for x in (boxes, scores, labels, *more))",
        "for x in (boxes.to(self.device), scores.to(self.device), labels.to(self.device), *more))",
        f"{DETECTOR}::test_whole_runs_wait_once_for_each_batch",
    ),
    Fault(
        "a stream for the warm-up of every shape",
        "frcnn/inference/cuda_graph.py",
        "if device not in self._streams:",
        "if True:",
        f"{DEVICE}::test_graphs_of_a_device_share_one_stream",
    ),
    Fault(
        "a process without torchrun that works on another device than the current one",
        "frcnn/engine/distributed.py",
        "if chosen.index is not None:",
        "if False:",
        f"{TRAINING}::test_a_run_resumes_as_if_it_had_not_stopped",
    ),
    Fault(
        "folded norms in another layout than the weights",
        "csrc/bindings/fold_norms.cpp",
        "const bool in_rows = weight.is_contiguous() || (weight.dim() == 4 && is_channels_last(weight));",
        "const bool in_rows = weight.is_contiguous();",
        f"{TRAINING}::test_a_step_waits_for_nothing",
    ),
    Fault(
        "a detector whose weights lie otherwise than its maps",
        "frcnn/detector.py",
        'if self.device.type == "cuda":\n            convert',
        'if self.device.type == "xpu":\n            convert',
        f"{DETECTOR}::test_whole_runs_wait_once_for_each_batch",
    ),
    Fault(
        "DDP that sends the norms' statistics in every step",
        "frcnn/engine/distributed.py",
        "{option: False,",
        "{option: True,",
        f"{PROCESSES}::test_two_processes_are_one_that_has_both_batches",
    ),
    Fault(
        "DDP that copies gradients",
        "frcnn/engine/distributed.py",
        '"gradient_as_bucket_view": True',
        '"gradient_as_bucket_view": False',
        f"{PROCESSES}::test_two_processes_are_one_that_has_both_batches",
    ),
    Fault(
        "an upload in the losses, which stalls",
        "frcnn/targets.py",
        "upload(packed, device)",
        "packed.to(device)",
        f"{TRAINING}::test_a_step_waits_for_nothing",
    ),
    Fault(
        "numbers uploaded from pageable memory",
        "frcnn/structures.py",
        "tensor = tensor.pin_memory()",
        "pass",
        f"{DETECTOR}::test_a_batch_waits_once",
    ),
    Fault(
        "numbers of a training step read at once",
        "frcnn/structures.py",
        "host.copy_(x, non_blocking=True)",
        "x.cpu()",
        f"{TRAINING}::test_a_step_waits_for_nothing",
    ),
    Fault(
        "a step that is not finite and is taken",
        "frcnn/engine/step.py",
        "self.optimizer.found_inf = self.broken  #",
        "self.optimizer.found_inf = torch.zeros_like(self.broken)  #",
        f"{TRAINING}::test_a_step_that_was_not_finite_is_found_later_and_described",
    ),
    Fault(
        "a step that is not finite and only it is not taken",
        "frcnn/engine/step.py",
        "unsound = self.broken if",
        "self.broken.zero_()\n        unsound = self.broken if",
        f"{TRAINING}::test_a_step_that_was_not_finite_is_found_later_and_described",
    ),
    Fault(
        "a loss that is not finite in one process only",
        "frcnn/engine/step.py",
        'self.processes.highest_on_device(unsound, "the losses")',
        "pass",
        f"{PROCESSES}::test_two_processes_are_one_that_has_both_batches",
    ),
    Fault(
        "hosts that wait for their GPUs without having met",
        "frcnn/engine/run.py",
        'self.processes.highest([0], "the numbers of the last steps")',
        "pass",
        f"{PROCESSES}::test_a_process_that_hangs_ends_the_other_and_the_run_can_go_on[5]",
    ),
    Fault(
        "NCCL gives up when the hosts do",
        "frcnn/engine/distributed.py",
        "timedelta(seconds=2 * timeout)",
        "timedelta(seconds=timeout)",
        f"{PROCESSES}::test_a_process_that_hangs_ends_the_other_and_the_run_can_go_on[4]",
    ),
    Fault(
        "counts read before they are there",
        "frcnn/structures.py",
        "self._ready.synchronize()",
        "pass",
        f"{DETECTOR}::test_detections_are_the_cpus",
    ),
    Fault(
        "what a block has left handed over without a fence",
        "csrc/cuda/last_block.h",
        "    __threadfence();\n    last =",
        "    last =",
        f"{KERNELS}[iou_loss-0]",
    ),
    Fault(
        "what the blocks have left read without a fence",
        "csrc/cuda/last_block.h",
        "  if (!last) return false;\n  __threadfence();",
        "  if (!last) return false;",
        f"{KERNELS}[iou_loss-0]",
    ),
    Fault(
        "a graph for every shape",
        "frcnn/inference/shapes.py",
        "MOST_SHAPES = 8",
        "MOST_SHAPES = 12",
        f"{DETECTOR}::test_forty_shapes_need_eight_graphs_and_no_more_memory",
    ),
    Fault(
        "a step of float16 that overflows and is taken",
        "frcnn/engine/step.py",
        "self.optimizer.found_inf = torch.maximum(self.broken, unsound)",
        "self.optimizer.found_inf = self.broken",
        f"{TRAINING}::test_a_step_of_float16_that_overflows_is_skipped_without_a_wait",
    ),
    Fault(
        "a step of float16 that overflows and leaves the loss scale",
        "frcnn/engine/step.py",
        "self.scale.update(unsound > 0)",
        "self.scale.update(unsound > 1)",
        f"{TRAINING}::test_a_step_of_float16_that_overflows_is_skipped_without_a_wait",
    ),
    Fault(
        "training images uploaded as float32",
        "frcnn/structures.py",
        "images=self.images.to(device, non_blocking=non_blocking)",
        "images=self.images.float().pin_memory().to(device, non_blocking=True).byte()",
        f"{TRAINING}::test_more_steps_are_no_more_waits",
    ),
    Fault(
        "images to detect in uploaded as float32",
        "frcnn/inference/stream.py",
        "finish = self._launch(pixels,",
        "finish = self._launch(pixels.float().pin_memory().to(self.device, non_blocking=True).byte(),",
        f"{DETECTOR}::test_a_batch_waits_once",
    ),
    Fault(
        "as many boxes in a block of compute capability 7.5 as in a larger one",
        "csrc/cuda/nms_suppress.h",
        "? kFrcnnNmsBlock : kFrcnnNmsBlock / 2;",
        "? kFrcnnNmsBlock : kFrcnnNmsBlock;",
        f"{LAUNCHES}::test_nms_where_a_block_has_little_shared_memory",
    ),
    Fault(
        "limit of compute capability 7.5 without an error message of its own",
        "csrc/bindings/select_proposals.cpp",
        'expect_in_block(op, "anchors before NMS (pre_nms)", device, pre_nms, "lower pre_nms");',
        "",
        f"{LAUNCHES}::test_more_than_a_block_of_a_small_gpu_holds_is_said_so",
    ),
    Fault(
        "limit of a grid without an error message of its own",
        "csrc/bindings/assign_max_iou.cpp",
        "expect_images(op, device, batch);",
        "",
        f"{ON_CUDA}::test_too_many_images_are_named",
    ),
    Fault(
        "limit of resources without an error message of its own",
        "csrc/bindings/binding.h",
        "error != cudaErrorLaunchOutOfResources, op,",
        "true, op,",
        f"{LAUNCHES}::test_a_refused_launch_is_the_fault_of_its_operator_alone",
    ),
    Fault(
        "a graph's turn that does not wait for the turn of another thread",
        "frcnn/inference/cuda_graph.py",
        "with self._lock:",
        "if True:",
        "tests/inference/test_cuda_graph.py::test_threads_take_turns",
    ),
    *(
        Fault(
            f"{binding} without a device guard",
            f"csrc/bindings/{binding}.cpp",
            f"  const OnDevice guard({device});",
            "",
            f"{GUARD}[{call}]",
        )
        for binding, device, call in [
            ("assign_max_iou", "device", "assign_max_iou"),
            ("box_coder", "boxes.device()", "decode_boxes_backward"),
            ("box_head_loss", "device", "box_head_loss_backward"),
            ("box_iou", "a.device()", "box_iou"),
            ("conv_epilogue", "x.device()", "conv_epilogue"),
            ("fold_norms", "device", "fold_norms_backward"),
            ("grid_anchors", "device", "grid_anchors"),
            ("iou_loss", "device", "iou_loss_backward"),
            ("nms", "boxes.device()", "nms_padded_large"),
            ("normalize_images", "images.device()", "normalize_images"),
            ("relu_bias_gradient", "grad.device()", "relu_bias_gradient"),
            ("resize_images", "images[0].device()", "resize_images"),
            ("roi_align", "device", "roi_align_backward"),
            ("rpn_loss", "device", "rpn_loss_backward"),
            ("sample_anchors", "device", "sample_anchors"),
            ("sample_proposals", "device", "sample_proposals"),
            ("select_detections", "device", "select_detections"),
            ("select_proposals", "device", "select_proposals"),
        ]
    ),
]


def copied(folder: Path) -> Path:
    """The tracked files. Each fault is put into this one copy, so that only what it changes is compiled."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in files.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def passes(copy: Path, tests: str) -> bool:
    """Whether the tests pass; RuntimeError where they could not be run."""
    command = ["make", "-C", str(copy), "test-gpu-emulated", f"GPU_TESTS={tests}", "TEST_ARGS=-x -k ''"]
    run = subprocess.run(command, capture_output=True, text=True)
    if " passed" not in run.stdout and " failed" not in run.stdout:
        raise RuntimeError(f"no test ran:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
    return run.returncode == 0


def noticed(fault: Fault, copy: Path) -> bool:
    file = copy / fault.file
    text = file.read_text()
    assert fault.mended in text, f"{fault.file} has no {fault.mended!r}: mend this list"
    file.write_text(text.replace(fault.mended, fault.faulty))
    try:
        return not passes(copy, fault.tests)
    finally:
        file.write_text(text)


def main() -> None:
    words = sys.argv[1:] or [""]
    chosen = [fault for fault in FAULTS if any(word in fault.name for word in words)]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            assert passes(copy, tests), f"{tests} fails without any fault"
        print("all tests pass without a fault", flush=True)
        for fault in chosen:
            found = noticed(fault, copy)
            print(f"{'noticed' if found else 'MISSED '}  {fault.name}", flush=True)
            missed += [] if found else [fault.name]
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
