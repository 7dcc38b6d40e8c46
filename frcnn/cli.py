"""The `frcnn` command: typed functions, made into sub-commands by tyro.

Everything heavy is imported inside a command, so that help is instant and one command's dependencies never
break another.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from frcnn.config import DataConfig, Recipe, ScheduleConfig
from frcnn.zoo.recipes import recipe as recipe_named

if TYPE_CHECKING:
    from frcnn.detector import FasterRCNN

Model = Annotated[
    str,
    arg(
        metavar="MODEL",
        help="A checkpoint that `frcnn train` wrote, or a recipe's name (see `frcnn models`).",
    ),
]
Weights = Annotated[
    str | None,
    arg(
        metavar="PATH|coco",
        help="With a recipe's name: the checkpoint to load, of MMDetection, torchvision or detectron2 too, "
        "or coco to download the published one (the default).",
    ),
]
Device = Annotated[str | None, arg(metavar="DEVICE", help="cpu, cuda, cuda:1; default: cuda if any.")]
Images = Annotated[Path, arg(metavar="DIR", help="The folder that the file's image names are relative to.")]
Annotations = Annotated[Path, arg(metavar="FILE", help="A COCO annotation file.")]

PROGRAM = "frcnn"
DESCRIPTION = (
    "Faster R-CNN: train it on your data, evaluate it, detect with it. Start with `make demo`, or with "
    "`frcnn train small_r18_fpn` on a data set in COCO format."
)


def models(name: Positional[Annotated[str | None, arg(metavar="RECIPE")]] = None) -> None:
    """List the model zoo's recipes with their published figures, or show one recipe in full."""
    from frcnn.zoo.table import models

    models(name)


def detect(
    paths: Positional[Annotated[tuple[Path, ...], arg(metavar="PATH [PATH …]", help="Images and folders.")]],
    model: Model,
    weights: Weights = None,
    output: Path = Path("detections"),
    min_score: float = 0.3,
    size: tuple[int, int] | None = None,
    draw: bool = True,
    resume: bool = False,
    device: Device = None,
) -> int:
    """Find objects in images and folders; write annotated images and detections.json.

    No existing file is overwritten. Ctrl-C ends it after the present image; --resume continues.

    Args:
        output: Folder for the results.
        min_score: Leave out detections below this score.
        size: Long and short side that images are resized to fit; default: the recipe's.
        draw: Write annotated images besides the JSON files.
        resume: Go on with an earlier run into the same output; what it has done is skipped.
    """
    from frcnn.engine.detect import detect, in_words
    from frcnn.engine.interrupt import Interrupted

    if not paths:
        raise ValueError("name at least one image or folder")
    try:
        result = detect(
            _load(model, weights, device),
            paths,
            output,
            min_score=min_score,
            size=size,
            draw=draw,
            resume=resume,
        )
    except Interrupted as interrupted:
        print(f"{interrupted}\ncontinue with: {resume_command(sys.argv)}", file=sys.stderr)
        raise SystemExit(130) from None
    for failure in result.failed.values():
        print(f"skipped: {failure}", file=sys.stderr)
    if result.not_read:
        print(f"left out{in_words(result.not_read).removeprefix(', but')}", file=sys.stderr)
    print(f"{result.boxes} boxes, {result.seconds_per_image * 1000:.0f} ms per image")
    if result.resumed:
        print(f"resumed     {result.resumed} images were done before")
    print(f"detections  {result.detections}")
    if draw:
        print(f"images      {output} ({len(result.drawings)})")
    if result.failed:
        print(f"failed      {len(result.failed)} images (above; --resume tries them again)", file=sys.stderr)
    return 1 if result.failed else 0


def evaluate(
    model: Positional[Model],
    annotations: Annotations,
    images: Images,
    weights: Weights = None,
    per_class: bool = False,
    output: Path | None = None,
    batch_size: int = 1,
    workers: int = 2,
    device: Device = None,
) -> None:
    """Score a model on a COCO data set by pycocotools.

    Args:
        per_class: Also print AP and AP50 of every class.
        output: Write the detections to this file, in COCO's results format.
        batch_size: Images per forward pass.
        workers: Processes that read and resize images.
    """
    from frcnn.engine.evaluate import evaluate

    result = evaluate(
        _load(model, weights, device),
        annotations,
        images,
        batch_size=batch_size,
        workers=workers,
        output=output,
    )
    print((result if per_class else replace(result, per_class={})).table())


def convert(
    source: Positional[Annotated[Path, arg(metavar="SOURCE", help="What frcnn.load_checkpoint reads.")]],
    target: Positional[Annotated[Path, arg(metavar="TARGET", help="Ending in .safetensors or .pth.")]],
    recipe: Annotated[str | None, arg(metavar="RECIPE")] = None,
) -> None:
    """Rewrite a checkpoint of MMDetection, torchvision or detectron2 as a plain file of weights.

    Args:
        recipe: What the weights are of; default: what the file says.
    """
    from frcnn.zoo.convert import convert

    convert(source, target, recipe)


def verify(
    cases: Positional[Annotated[tuple[str, ...], arg(metavar="[CASE …]", help="Default: all.")]] = (),
    device: str = "cpu",
    reference: Path | None = None,
) -> int:
    """Recompute MMDetection's numbers on this machine and print the comparison.

    Args:
        device: Where to compute.
        reference: Folder with full reference cases; default: the small ones that come with the package.
    """
    from frcnn.zoo.verify import verify

    return 0 if verify(cases, device, reference) else 1


def train_command(default: Recipe) -> Callable[..., None]:
    """`frcnn train` with the values of one recipe as the defaults of its --data and --schedule options."""

    def train(
        recipe: Positional[
            Annotated[str, arg(metavar="RECIPE", help="See `frcnn models`; or small_r18_fpn.")]
        ],
        train_annotations: Annotations,
        train_images: Images,
        val_annotations: Annotated[Path | None, arg(metavar="FILE")] = None,
        val_images: Annotated[Path | None, arg(metavar="DIR")] = None,
        work_dir: Path | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        workers: int = 2,
        seed: int = 0,
        device: Device = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        weights: Annotated[str | None, arg(metavar="PATH|coco|random")] = None,
        reinit_heads: bool = False,
        resume: bool = False,
        eval_every: int = 1,
        save_every: int = 1000,
        log_every: int = 50,
        schedule: ScheduleConfig = default.schedule,
        data: DataConfig = default.data,
    ) -> None:
        """Train a recipe on a data set in COCO format; its classes are taken from the file.

        For several GPUs: torchrun --nproc-per-node N -m frcnn train …

        Args:
            val_annotations: COCO annotations to evaluate on after every epoch.
            val_images: The folder of those images.
            work_dir: Folder for checkpoints and logs; default: work_dirs/RECIPE.
            epochs: Instead of the recipe's; its learning rate decays move in proportion.
            batch_size: Images per process and step; the learning rate follows linearly.
            workers: Processes that read and augment images.
            seed: For everything random.
            precision: bfloat16 computes convolutions and matrix products in bfloat16.
            weights: Start from this checkpoint, from the published one (coco), or from nothing (random).
            reinit_heads: Leave out the checkpoint's class and box layer, to train other classes.
            resume: Continue from work_dir's last.pth, exactly.
            eval_every: Epochs between evaluations.
            save_every: Steps between checkpoints, besides the one after every epoch.
            log_every: Steps between log lines.
        """
        from frcnn.engine.interrupt import Interrupted
        from frcnn.engine.train import train

        try:
            result = train(
                replace(default, schedule=schedule, data=data),
                train_annotations,
                train_images,
                val_annotations,
                val_images,
                work_dir=work_dir,
                epochs=epochs,
                batch_size=batch_size,
                workers=workers,
                seed=seed,
                device=device,
                precision=precision,
                weights=weights,
                reinit_heads=reinit_heads,
                resume=resume,
                eval_every=eval_every,
                save_every=save_every,
                log_every=log_every,
            )
        except Interrupted as interrupted:
            print(f"{interrupted}\ncontinue with: {resume_command(sys.argv)}", file=sys.stderr)
            raise SystemExit(130) from None
        checkpoint = result.best or result.checkpoint
        print(f"checkpoint  {checkpoint}\nlog         {result.work_dir / 'log.jsonl'}")
        print(f"curves      tensorboard --logdir {shlex.quote(str(result.work_dir))}")
        print(f"detect      frcnn detect PATH --model {shlex.quote(str(checkpoint))}")

    return train


def resume_command(argv: Sequence[str]) -> str:
    """The command line that continues the run which `argv` started."""
    arguments = [*argv[1:], *([] if "--resume" in argv else ["--resume"])]
    return shlex.join([PROGRAM, *arguments])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line; expected errors end with one message, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        train = train_command(_named_recipe(arguments))
        commands = {
            "train": train,
            "eval": evaluate,
            "detect": detect,
            "models": models,
            "convert": convert,
            "verify": verify,
        }
        code = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog=PROGRAM,
            description=DESCRIPTION,
            args=arguments or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ArithmeticError, KeyError) as error:
        # KeyError's text is the repr of its message
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{PROGRAM}: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(code or 0)


def _named_recipe(arguments: Sequence[str]) -> Recipe:
    """The recipe that a train command names, for the defaults of its options."""
    if arguments[:1] != ["train"]:
        return Recipe("recipe")
    if len(arguments) < 2 or arguments[1].startswith("-"):
        if set(arguments) & {"-h", "--help"} or len(arguments) < 2:
            return Recipe("recipe")
        raise ValueError(
            "`frcnn train` takes the recipe's name first: frcnn train small_r18_fpn --train-annotations …"
        )
    return recipe_named(arguments[1])


def _load(model: str, weights: str | None, device: str | None) -> FasterRCNN:
    """A checkpoint that training wrote, or a recipe with weights."""
    import torch

    from frcnn.engine.checkpoint import model_from_checkpoint
    from frcnn.zoo.build import build

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if Path(model).suffix in {".pth", ".pt", ".safetensors"} and weights is None:
        return model_from_checkpoint(model, device)
    return build(model, weights=weights or "coco", device=device)
