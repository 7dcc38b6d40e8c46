"""The `frcnn` command: typed functions, made into sub-commands by tyro.

Everything heavy is imported inside a command, so that help is instant and one command's dependencies never
break another.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagConversionOff, Positional, arg

from frcnn.boundary import PROGRAM, exit_code, version
from frcnn.checked import OptionError, unknown
from frcnn.command_line import call, spellings
from frcnn.commands import data
from frcnn.commands.evaluate import evaluate
from frcnn.commands.export import export, verify
from frcnn.commands.model import (
    CHECKPOINTS,
    BatchSize,
    Device,
    Model,
    Precision,
    RunCode,
    Views,
    Weights,
    default,
    load_detector,
)
from frcnn.commands.report import compare, plot, report
from frcnn.config import DataConfig, ModelConfig, Recipe, ScheduleConfig, ViewConfig
from frcnn.files import check_folder, check_keeps, check_writable
from frcnn.zoo.recipes import recipe as recipe_named

DESCRIPTION = (
    "Faster R-CNN: train it on your data, evaluate it, detect with it. Start with `make demo`, or with "
    "`frcnn train small_r18_fpn` on a data set in COCO's format. `frcnn COMMAND --help` explains a command, "
    "`frcnn --version` prints the versions; FRCNN_DEBUG=1 in the environment shows tracebacks."
)


def models(
    recipe: Positional[Annotated[str | None, default("[RECIPE]", "all", "Show it in full.")]] = None,
) -> None:
    """List the recipes with their published figures, or show one in full."""
    from frcnn.zoo.table import models

    models(recipe)


def detect(
    paths: Positional[
        Annotated[
            tuple[str, ...],
            arg(
                metavar="PATH [PATH …]",
                help="Images, folders, patterns and images' URLs; or one video: a file, an http or rtsp URL, "
                "/dev/video0.",
                help_behavior_hint="(required)",
            ),
        ]
    ],
    model: Model,
    weights: Weights = None,
    output: Path = Path("detections"),
    min_score: float = 0.3,
    classes: Annotated[tuple[str, ...], default("NAME [NAME …]", "all", "List and draw these alone.")] = (),
    formats: Annotated[
        tuple[Literal["coco", "yolo", "voc", "crops"], ...],
        default("{coco,yolo,voc,crops} …", "none", "Write these too, each into a folder of its name."),
    ] = (),
    size: Annotated[tuple[int, int] | None, default("LONG SHORT", "the recipe's")] = None,
    no_draw: bool = False,
    resume: bool = False,
    shard: Annotated[
        str | None, default("K/N", "all images", "Of N runs that share the images, the K-th.")
    ] = None,
    batch_size: BatchSize = 4,
    precision: Precision = "float32",
    device: Device = None,
    run_code: RunCode = False,
    views: Views = ViewConfig(),  # noqa: B008
) -> int:
    """Find objects in images and folders; write annotated images and detections.json. Or in a video.

    No existing file is overwritten. Ctrl-C ends it after the present image; --resume continues. Of a video,
    the annotated one and a JSON line for each frame are written.

    Args:
        output: Folder for the results.
        min_score: Leave out detections below this score.
        size: Long and short side that images are resized to fit.
        no_draw: Write the JSON files only, no annotated images.
        resume: Go on with an earlier run into the same output; what it has done is skipped.
    """
    from frcnn.engine.detect import check_options, detect
    from frcnn.engine.detect_video import detect_video
    from frcnn.engine.interrupt import Interrupted
    from frcnn.inference.sources import check_there, in_words
    from frcnn.inference.video import is_video

    if not paths:
        raise OptionError("name at least one image or folder")
    part = _shard(shard)
    check_options(min_score, size, batch_size, part)
    chosen: dict[str, Any] = {"min_score": min_score, "size": size, "batch_size": batch_size}
    chosen |= {"draw": not no_draw, "classes": classes}
    videos = [path for path in paths if is_video(path)]
    if videos and (len(paths) > 1 or resume or shard or formats):
        raise OptionError(f"{videos[0]} is a video, which is done alone: no resume=True, shard= and formats=")
    check_there(paths)
    check_folder(output)
    detector = load_detector(model, weights, device, precision, run_code, views)
    try:
        if videos:
            return detect_video(detector, paths[0], output, **chosen).tell()
        result = detect(detector, paths, output, resume=resume, shard=part, formats=formats, **chosen)
    except Interrupted as interrupted:
        hint = "" if videos else f"\ncontinue with: {resume_command(sys.argv)}"
        print(f"{interrupted}{hint}", file=sys.stderr)
        raise SystemExit(interrupted.exit_code) from None
    for failure in result.failed.values():
        print(f"skipped: {failure}", file=sys.stderr)
    if result.not_read:
        print(f"left out{in_words(result.not_read).removeprefix(', but')}", file=sys.stderr)
    print(f"{result.boxes} boxes, {result.seconds_per_image * 1000:.0f} ms per image")
    if result.resumed:
        print(f"resumed     {result.resumed} images were done before")
    print(f"detections  {result.detections}")
    if not no_draw:
        print(f"images      {output} ({len(result.drawings)})")
    if formats:
        print(f"formats     {', '.join(str(output / name) for name in formats)}")
    if result.failed:
        print(f"failed      {len(result.failed)} images (above; --resume tries them again)", file=sys.stderr)
    return 1 if result.failed else 0


def _shard(words: str | None) -> tuple[int, int]:
    """ "3/16" as (3, 16)."""
    if words is None:
        return 1, 1
    number, _, of = words.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise OptionError(f"shard={words}: it is K/N, such as 3/16")
    return int(number), int(of)


def convert(
    source: Positional[Annotated[Path, arg(metavar="SOURCE", help="What frcnn.load_checkpoint reads.")]],
    target: Positional[Annotated[Path, arg(metavar="TARGET", help="Ending in .safetensors or .pth.")]],
    recipe: Annotated[str | None, default("RECIPE", "what the file says")] = None,
) -> None:
    """Rewrite a checkpoint of MMDetection, torchvision or detectron2 as a plain file of weights.

    Args:
        recipe: What the weights are of.
    """
    from frcnn.checkpoint.convert import convert

    check_writable(target)
    convert(source, target, recipe)


def env() -> None:
    """Print versions, devices and what was built: what a report of a problem should say."""
    from frcnn.environment import environment

    print(environment())


def data_commands() -> None:
    """Look at a data set, draw it, or write it in another format: `frcnn data --help`."""


def train_command(recipe: Recipe | None) -> Callable[..., None]:
    """`frcnn train` with the values of a recipe as the defaults of its schedule, data and model.

    Without a recipe those settings have no defaults worth showing, so the help leaves them out.
    """
    base = recipe or Recipe("recipe")

    def train(
        recipe: Positional[
            Annotated[str, arg(metavar="RECIPE", help="One of `frcnn models`, or a .toml or .json file.")]
        ],
        train_annotations: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE …]")],
        train_images: Annotated[tuple[Path, ...], arg(metavar="DIR [DIR …]")],
        val_annotations: Annotated[tuple[Path, ...], default("FILE [FILE …]", "none")] = (),
        val_images: Annotated[tuple[Path, ...], default("DIR [DIR …]", "none")] = (),
        work_dir: Annotated[Path | None, default("DIR", "work_dirs/RECIPE")] = None,
        epochs: Annotated[int | None, default("INT", "the recipe's")] = None,
        batch_size: Annotated[int | None, default("INT", "the recipe's")] = None,
        workers: int = 2,
        seed: int = 0,
        device: Device = None,
        precision: Precision = "float32",
        mode: Literal["eager", "graph"] = "eager",
        weights: Annotated[str | None, default("PATH|coco|random", "the recipe's backbone")] = None,
        reinit_heads: bool = False,
        resume: bool = False,
        resume_or_start: bool = False,
        eval_every: int = 1,
        val_losses: bool = False,
        save_every: int = 1000,
        log_every: int = 50,
        timeout: float = 600.0,
        max_bad_images: float = 0.01,
        schedule: Annotated[ScheduleConfig, FlagConversionOff] = base.schedule,
        data: Annotated[DataConfig, FlagConversionOff] = base.data,
        model: Annotated[ModelConfig, FlagConversionOff] = base.model,
    ) -> None:
        """Train a recipe on a data set of COCO's, VOC's or YOLO's format, with its classes.

        More settings: `frcnn train RECIPE --help`. Several GPUs: torchrun --nproc-per-node N -m frcnn train …

        Args:
            train_annotations: A COCO file, VOC's XML folder or image set, or YOLO's data.yaml; several are
                trained on together.
            train_images: The folder that its image names are relative to: one for each, or one for all.
            val_annotations: Annotations to evaluate on after every epoch.
            val_images: The folder of those images.
            work_dir: Folder for checkpoints and logs.
            epochs: How many; the recipe's learning rate decays move in proportion.
            batch_size: Images per process and step; the learning rate follows linearly.
            workers: Processes that read and augment images.
            seed: For everything random.
            precision: What convolutions and matrix products are computed in; tf32 on GPUs only.
            mode: graph runs each step as one CUDA graph, on one GPU; some more padding.
            weights: Start from this checkpoint, from the published one (coco), or from nothing (random).
            reinit_heads: Leave out the checkpoint's class and box layer, to train other classes.
            resume: Continue from work_dir's last.pth, exactly.
            resume_or_start: Continue where there is a last.pth, start where there is none.
            eval_every: Epochs between evaluations.
            val_losses: Also log the losses of the validation set, by a second forward pass of its images.
            save_every: Steps between checkpoints, besides the one after every epoch.
            log_every: Steps between log lines.
            timeout: Under torchrun, seconds after which a process that waits for another gives up.
            max_bad_images: The share of the training images that may be unusable before training stops.
        """
        of_recipe = "recipe", "base", "schedule", "data", "model", "of_recipe"
        given = {name: value for name, value in locals().items() if name not in of_recipe}
        from frcnn.engine.interrupt import Interrupted
        from frcnn.engine.run_folder import folder_of
        from frcnn.engine.train import train

        if not (resume or resume_or_start):  # where that is what the run before has written
            check_keeps([recipe], folder_of(work_dir, base) / "recipe.json")
        if model.num_classes != base.model.num_classes:
            raise OptionError("model.num_classes cannot be set: the classes are those of train_annotations")
        try:
            result = train(replace(base, schedule=schedule, data=data, model=model), **given)
        except Interrupted as interrupted:
            if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun would say the same
                hint = f"\ncontinue with: {resume_command(sys.argv)}" if interrupted.resumable else ""
                print(f"{interrupted}{hint}", file=sys.stderr)
            raise SystemExit(interrupted.exit_code) from None
        checkpoint = result.best or result.checkpoint
        print(f"checkpoint  {checkpoint}\nlog         {result.work_dir / 'log.jsonl'}")
        if (result.work_dir / "tensorboard").is_dir():  # it is an extra
            print(f"curves      tensorboard --logdir {shlex.quote(str(result.work_dir))}")
        print(f"detect      frcnn detect PATH --model {shlex.quote(str(checkpoint))}")

    if base is not recipe:
        hidden: Any = tyro.conf.Suppress
        for name in ("schedule", "data", "model"):
            train.__annotations__[name] = hidden[train.__annotations__[name]]
    return train


def resume_command(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """The command line that continues the run which `argv` started, by torchrun where that did."""
    words = list(argv[1:])
    end = words.index("--") if "--" in words else len(words)  # what follows are no options
    if not {"--resume", "--resume-or-start"} & {*words[:end]}:
        words.insert(end, "--resume")
    command = shlex.join([PROGRAM, *words])
    if "TORCHELASTIC_RUN_ID" not in environment:
        return command
    count, here = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
    # how several machines find each other, only the user knows
    nodes = f"--nnodes {count // here} … " if count > here else ""
    return f"torchrun {nodes}--nproc-per-node {here} -m {command}"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line."""
    arguments, program = list(sys.argv[1:] if argv is None else argv), PROGRAM
    commands: dict[str, Callable[..., Any]] = {
        "train": train_command(None),
        "eval": evaluate,
        "report": report,
        "compare": compare,
        "plot": plot,
        "detect": detect,
        "models": models,
        "convert": convert,
        "export": export,
        "verify": verify,
        "data": data_commands,
        "env": env,
    }
    if arguments[:1] == ["data"]:
        commands, arguments, program = data.COMMANDS, arguments[1:], f"{PROGRAM} data"
    command = arguments[0] if arguments else "--help"

    def run() -> int | None:
        if command == "--version":
            print(version())
            return 0
        if command in ("-h", "--help") or command.startswith("--tyro"):  # the last for a shell's completion
            described = DESCRIPTION if program == PROGRAM else data_commands.__doc__
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog=program, description=described, args=arguments or ["--help"]
            )
        if command not in commands:
            raise unknown("command", command, [*commands, "--help", "--version"])
        if command == "train":
            commands["train"] = train_command(_named_recipe(arguments))
        return call(commands[command], f"{program} {command}", arguments[1:])

    known = spellings(commands[command]) if command in commands else {}
    # Not from inside its handling: the exception would keep a loader's processes from being closed in order.
    raise SystemExit(exit_code(run, known, arguments))


def _named_recipe(arguments: Sequence[str]) -> Recipe | None:
    """The recipe that a train command names, for the defaults of its options."""
    if len(arguments) > 1 and arguments[1] and not arguments[1].startswith("-"):
        if Path(arguments[1]).suffix in CHECKPOINTS:
            raise OptionError(
                f"`frcnn train` takes a recipe's name first; to start from {arguments[1]}, "
                f"add weights={arguments[1]}"
            )
        return recipe_named(arguments[1])
    if len(arguments) < 2 or set(arguments) & {"-h", "--help"}:
        return None
    raise OptionError(
        "`frcnn train` takes the recipe's name first: frcnn train small_r18_fpn --train-annotations …"
    )
