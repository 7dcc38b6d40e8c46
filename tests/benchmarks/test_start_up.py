import json
import subprocess
import sys

SCRIPT = """
import json, sys, time
import torch
started = time.process_time()
import frcnn
seconds = time.process_time() - started
{use}
print(json.dumps([seconds, sorted(sys.modules)]))
"""
HEAVY = {"matplotlib", "tensorboard", "hotcoco", "pycocotools", "tyro", "cv2", "scipy", "sklearn"}


def loaded(use: str = "") -> tuple[float, set[str]]:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(use=use)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_import_is_quick_and_light():
    seconds, modules = loaded()
    assert seconds < 0.3
    assert not modules & HEAVY


def test_a_detector_needs_nothing_that_only_training_or_the_command_line_need():
    _, modules = loaded("frcnn.FasterRCNN; frcnn.build; frcnn.recipe('faster_rcnn_r50_fpn_1x_coco')")
    assert not modules & (HEAVY - {"cv2"})
