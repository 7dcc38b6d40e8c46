"""What training reports: a progress bar, one JSON line per log step, TensorBoard.

The JSON lines have the keys of MMDetection's log.json, so its tools and habits keep working: training lines
have mode, epoch, iter (inside the epoch), lr, memory (MB), time and data_time (seconds per step), the losses,
acc and grad_norm, in float16 also loss_scale and skipped (the share of steps whose numbers were not finite,
which the other means leave out); validation lines have mode, epoch, iter, lr, the metrics and, where asked
for, the losses (val_loss, val_loss_cls, …). A line of mode bad_image names an image that cannot be used and
the step in which it was met; it has no epoch, by which those tools pass over it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from frcnn.engine.callbacks import Callback
from frcnn.files import replace_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

if sys.platform != "win32":
    import resource

SHOWN = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "val_loss")
"""Metrics on the terminal; the log has all."""


class TrainingLog:
    """Writes in the first process only.

    Lines of steps after `start`, and of validations of other epochs than `evaluated`, are taken out of the
    log: a resumed run repeats them.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        total: int,
        steps_per_epoch: int,
        active: bool,
        evaluated: Collection[float] = (),
        callbacks: Sequence[Callback] = (),
    ):
        self.active = active
        self.callbacks = callbacks
        self.total = total
        self.steps_per_epoch = steps_per_epoch
        self.file = folder / "log.jsonl"
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        if not active:
            return
        dropped = self._forget_after(start, evaluated)
        # on a terminal only: in a file, the log lines say the same
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="it",
            dynamic_ncols=True,
            mininterval=0.5,
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
        )
        self.board: SummaryWriter | None = None
        try:
            import torch.utils.tensorboard as tensorboard

            self.board = tensorboard.SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        except ImportError:
            self.say(
                "no tensorboard (pip install tensorboard, or frcnn with its extra tensorboard): curves go to "
                "log.jsonl only"
            )
        if dropped:
            self.say(f"{self.file}: lines that were cut off while being written, taken out: {dropped}")

    def say(self, text: str) -> None:
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self, iteration: int, lr: float, values: dict[str, float], device: torch.device) -> None:
        """Count the losses, acc and so on of one step (counted from 0)."""
        self.count(values)
        loss = values.get("loss", math.nan)
        if self.active:
            self.bar.update()
            self.bar.set_postfix_str(
                f"epoch {iteration // self.steps_per_epoch + 1} loss {loss:.3f} lr {lr:.2g} "
                f"{memory_mb(device)} MB",
                refresh=False,
            )
            for callback in self.callbacks:
                callback.step(iteration + 1, {"lr": lr, **values})

    def count(self, values: dict[str, float]) -> None:
        """Take numbers into the means of the next line."""
        for name, value in values.items():
            self.sums[name] += value
            self.counts[name] += 1

    def write(self, iteration: int, lr: float, device: torch.device) -> None:
        """One line with the means since the last one."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums.clear()
        self.counts.clear()
        if not self.active:
            return
        epoch, step = divmod(iteration, self.steps_per_epoch)
        ordered = {
            "mode": "train",
            "epoch": epoch + 1,
            "iter": step + 1,
            "lr": lr,
            "memory": memory_mb(device),
            **means,
        }
        self._append(ordered)
        self._scalars("train", iteration, {"lr": lr, **means})
        losses = " ".join(f"{name} {value:.4f}" for name, value in means.items() if "loss" in name)
        left = (self.total - iteration - 1) * means["time"]
        acc = means.get("acc", math.nan)
        self.say(
            f"epoch {epoch + 1} [{step + 1}/{self.steps_per_epoch}] lr {lr:.3g} {means['time']:.3f} s/it "
            f"(data {means['data_time']:.3f}) left {duration(left)} {losses} acc {acc:.1f}"
        )
        if step + 1 == self.steps_per_epoch:
            for callback in self.callbacks:
                callback.epoch(epoch + 1, {"lr": lr, **means})

    def validation(self, iteration: int, lr: float, metrics: dict[str, float]) -> None:
        """One line with the metrics after `iteration` steps."""
        if not self.active:
            return
        epoch = iteration // self.steps_per_epoch
        self._append({"mode": "val", "epoch": epoch, "iter": self.steps_per_epoch, "lr": lr, **metrics})
        self._scalars("val", iteration, {name.removeprefix("val_"): v for name, v in metrics.items()})
        shown = [f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics]
        self.say(f"epoch {epoch} val {' '.join(shown)}")
        for callback in self.callbacks:
            callback.evaluation(epoch, dict(metrics))

    def bad_image(self, steps: int, path: Path, reason: str) -> None:
        """Name an image that cannot be used; it was met in step `steps`, counted from 1."""
        if not self.active:
            return
        self._append({"mode": "bad_image", "step": steps, "image": str(path), "reason": reason})
        self.say(f"another image takes the place of a bad one: {reason}")

    def state(self) -> dict[str, Any]:
        """What the next line has summed up so far, as plain values."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.sums.update(state["sums"])
        self.counts.update(state["counts"])

    def close(self) -> None:
        if self.active:
            self.bar.close()
            if self.board is not None:
                # on a full disk it fails a second time, over the error that has ended training
                with contextlib.suppress(OSError):
                    self.board.close()

    def _append(self, line: dict) -> None:
        try:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(
                error.errno, f"{self.file} could not be written ({error.strerror}): make room, then resume"
            ) from None

    def _scalars(self, group: str, iteration: int, values: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, iteration)

    def _forget_after(self, start: int, evaluated: Collection[float]) -> int:
        """Keep the log lines of the first `start` steps and of the epochs `evaluated`; returns how many lines
        were dropped because they are no JSON, as a crash or a full disk leaves them."""
        if not self.file.exists():
            return 0
        text = self.file.read_text(encoding="utf-8", errors="replace")
        kept, dropped = [], 0
        for line in filter(None, text.split("\n")):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                dropped += 1
                continue
            if self._is_behind(entry, start, evaluated):
                kept.append(line + "\n")
        if "".join(kept) != text:
            replace_text(self.file, "".join(kept))
        return dropped

    def _is_behind(self, entry: object, start: int, evaluated: Collection[float]) -> bool:
        match entry:
            case {"mode": "train", "epoch": int(epoch), "iter": int(step)}:
                return (epoch - 1) * self.steps_per_epoch + step <= start
            case {"mode": "val", "epoch": int(epoch)}:
                return epoch in evaluated
            case {"mode": "bad_image", "step": int(steps)}:
                return steps <= start
        return True  # not training's


def memory_mb(device: torch.device) -> int:
    """Peak memory: of the CUDA allocator, or resident in this process on a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kilobytes


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
