"""How model.safetensors was made: `python tests/export/trained/train.py BCCD WORK_DIR`, in ten minutes.

BCCD: a folder of the data set of https://github.com/Shenggan/BCCD_Dataset (MIT license, copyright 2017
shenggan) with annotations/instances_{train,val}.json and images. images/ holds six of its test split at half
size.
"""

import sys
from dataclasses import replace
from pathlib import Path

import frcnn
import frcnn.backbone

STAGE_CHANNELS = (8, 16, 32, 64)


def main(data: Path, work_dir: Path) -> None:
    frcnn.backbone.STAGE_CHANNELS = STAGE_CHANNELS
    recipe = frcnn.recipe("small_r18_fpn")
    head = replace(recipe.model.roi_head, fc_channels=64)
    recipe = replace(
        recipe,
        name="bccd_of_few_channels",
        model=replace(recipe.model, fpn_channels=32, roi_head=head),
        schedule=replace(recipe.schedule, epochs=24, decay_epochs=(18, 22)),
    )
    splits = (data / "annotations" / f"instances_{split}.json" for split in ("train", "val"))
    train, val = ((annotations, data / "images") for annotations in splits)
    result = frcnn.train(recipe, *train, *val, work_dir=work_dir, device="cpu", eval_every=6)
    frcnn.load(result.best).save(Path(__file__).with_name("model.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
