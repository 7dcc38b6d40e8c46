"""Images per second of detection in a pipeline of Ray Data, by one actor and by two.

python benchmarks/with_ray.py --images 6; torchvision's detector runs beside it where it is installed.
The rate is that of the images between the first and the last count of two runs, so that starting Ray and its
actors is not in it. Networks have random weights, so detections are few; an actor computes with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import ray
import torch

import frcnn
import frcnn.ray


class Torchvision:
    """torchvision's detector of the same backbone, as its documentation calls it."""

    def __init__(self) -> None:
        from torchvision.models.detection import fasterrcnn_resnet50_fpn

        self.model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in batch["image"]]
        return {"boxes": np.array([len(found["boxes"]) for found in self.model(images)])}


def seconds(folder: Path, count: int, actors: int, detector: type, arguments: list[str]) -> float:
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    images = ray.data.read_images(paths, override_num_blocks=2 * actors, include_paths=True)
    began = time.perf_counter()
    images.map_batches(
        detector,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    ).materialize()
    return time.perf_counter() - began


def rate(run: Callable[[int], float], few: int, many: int) -> float:
    """Images per second."""
    return (many - few) / (run(many) - run(few))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="faster_rcnn_r50_fpn_1x_coco")
    parser.add_argument(
        "--images", type=int, default=8, help="of the shorter run; the longer has three times as many"
    )
    options = parser.parse_args()
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(pixels).resize((640, 480))
        for number in range(3 * options.images):
            image.save(folder / f"{number}.jpg")
        frcnn.build(options.model, weights="random").save(folder / "model.pth")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        subjects: list[tuple[type, list[str]]] = [(frcnn.ray.Detector, [str(folder / "model.pth")])]
        if find_spec("torchvision") and "r50" in options.model:
            subjects.append((Torchvision, []))
        for detector, arguments in subjects:
            for actors in (1, 2):

                def run(count: int, actors=actors, detector=detector, arguments=arguments) -> float:
                    return seconds(folder, count, actors, detector, arguments)

                found = rate(run, options.images, 3 * options.images)
                print(
                    json.dumps(
                        {"detector": detector.__name__, "actors": actors, "images/s": round(found, 3)}
                    ),
                    flush=True,
                )
        ray.shutdown()


if __name__ == "__main__":
    main()
