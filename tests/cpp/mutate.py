"""Do the emulated tests miss a barrier? Deletes each barrier and fence of csrc/cuda, one at a time, in a copy
of the sources, and runs the kernels concerned.

    python tests/cpp/mutate.py [FILE ...]

Prints what caught each deletion. A survivor is a barrier that is not needed, or a case that is missing from
operators/. Takes some minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where the cases have another name than the file.
OPS = {
    "nms_block.cu": ["nms_padded", "nms_grouped"],
    "nms_suppress.h": ["nms_padded", "nms_grouped"],
    "nms_spread.h": ["nms_padded", "nms_grouped", "select_proposals"],
    "roi_align_plan.h": ["roi_align_backward"],
    "nms_large.cu": ["nms_large", "nms_padded_large"],
    "last_block.h": ["iou_loss", "nms_padded", "roi_align_backward"],
    "order_in_block.h": ["nms_padded", "select_detections", "select_proposals"],
    "block_sum.h": ["iou_loss", "rpn_loss", "box_head_loss"],
    "draw_slots.h": ["sample_anchors", "sample_proposals"],
}
BARRIER = re.compile(r"__syncthreads\(\);|__syncwarp\(\);|__threadfence\(\);")
RUN = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_kernels
for op in sys.argv[3:]:
    test_kernels.test_agrees_with_the_cpu_operator(op, 0)
"""


def main() -> int:
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "csrc", copy / "csrc")
        shutil.copytree(ROOT / "tools", copy / "tools")
        shutil.copytree(ROOT / "tests" / "cpp", copy / "tests" / "cpp")
        with_barriers = [p.name for p in (ROOT / "csrc/cuda").iterdir() if BARRIER.search(p.read_text())]
        for file in sys.argv[1:] or sorted(with_barriers):
            source = copy / "csrc" / "cuda" / file
            text, ops = source.read_text(), OPS.get(file, [Path(file).stem])
            command = [sys.executable, "-c", RUN, str(copy / "tests" / "cpp"), str(ROOT), *ops]
            subprocess.run(command, check=True)  # or whatever fails then would count as caught
            for found in BARRIER.finditer(text):
                source.write_text(text[: found.start()] + ";" + text[found.end() :])
                result = subprocess.run(command, text=True, capture_output=True)
                place = f"{file}:{text.count(chr(10), 0, found.start()) + 1} {found[0]}"
                reports = re.findall(r"^(?:race|uninitialized|out-of-bounds|deadlock).*", result.stderr, re.M)
                print(place, "survived" if result.returncode == 0 else f"caught {reports[:1]}", flush=True)
                if result.returncode == 0:
                    survivors.append(place)
            source.write_text(text)
    if survivors:
        print("not caught:", *survivors, sep="\n  ")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
