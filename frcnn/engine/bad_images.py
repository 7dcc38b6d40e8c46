"""The images that training could not use."""

from __future__ import annotations

from collections.abc import Iterable

from frcnn.data import CocoDataset, DatasetError
from frcnn.data.loader import BadImage, allowed_bad_images

NAMED = 5
"""How many an error message names."""


class BadImages:
    """How often which image had to be replaced, and why, over all processes."""

    def __init__(self, dataset: CocoDataset, share: float):
        self.dataset = dataset
        self.share = share
        self.allowed = allowed_bad_images(len(dataset), share)
        self.times: dict[int, int] = {}
        self.reasons: dict[int, str] = {}

    def add(self, found: Iterable[BadImage]) -> list[BadImage]:
        """Count them; returns those that are new."""
        new = []
        for image in found:
            if image.index not in self.times:
                new.append(image)
                self.reasons[image.index] = image.reason
            self.times[image.index] = self.times.get(image.index, 0) + 1
        return new

    @property
    def too_many(self) -> bool:
        return len(self.times) > self.allowed

    def error(self, saved: str) -> DatasetError:
        """What to raise when there are too many; `saved` says what is safe."""
        named = list(self.reasons.values())
        shown = "; ".join(named[:NAMED]) + ("; …" if len(named) > NAMED else "")
        return DatasetError(
            f"{len(named)} of the {len(self.dataset)} training images of {self.dataset.annotation_file} "
            f"cannot be used, and max_bad_images={self.share:g} allows {self.allowed}: {shown}. {saved}; "
            "mend the images or allow more, then resume"
        )

    def summary(self) -> str:
        """All of them in lines for people: why, and how often another one took the place."""
        head = f"{len(self.times)} images could not be used, and others took their place:"
        return "\n".join([head, *(f"  {self.reasons[index]} ({n}x)" for index, n in self.times.items())])

    def counts(self) -> dict[str, int]:
        """The image's path -> how often another one took its place."""
        return {str(self.dataset.image_path(index)): times for index, times in self.times.items()}

    def state(self) -> list[list]:
        """Plain values."""
        return [[index, times, self.reasons[index]] for index, times in self.times.items()]

    def restore(self, state: list[list]) -> None:
        """Go on from a `state`. Raises ValueError where that is of another data set."""
        for index, times, reason in state:
            if index >= len(self.dataset):
                raise ValueError(f"image {index} of {len(self.dataset)}")
            self.times[index], self.reasons[index] = times, reason
