"""How long it takes until a first prediction; run by benchmarks/run.py in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.worker import SEARCH

SCRIPT = (
    f"{SEARCH}\n"
    + """
import json, sys, time
started = time.perf_counter()
def lap():
    global started
    now = time.perf_counter()
    seconds, started = now - started, now
    return seconds
import torch
torch.set_num_threads(int(sys.argv[1]))
seconds = {"torch": lap()}
import frcnn
seconds["frcnn"] = lap()
frcnn.FasterRCNN, frcnn.build
seconds["detector"] = lap()
import numpy
model = frcnn.build("faster_rcnn_r50_fpn_1x_coco")
image = numpy.full((int(sys.argv[2]), int(sys.argv[3]), 3), 127, numpy.uint8)
lap()
model.predict(image)
seconds["first_prediction"] = lap()
print(json.dumps(seconds))
"""
)


def start_up(threads: int, height: int = 480, width: int = 640, repeats: int = 3) -> dict[str, float]:
    """Seconds, the least of several processes: `import torch`, then `import frcnn`, then the detector's own
    modules, and the first prediction of R-50-FPN in memory on an image of height x width at 800x1333.
    """
    runs = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(threads), str(height), str(width)],
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append(json.loads(done.stdout))
    return {name: min(run[name] for run in runs) for name in runs[0]}
