"""From images to detections: read ahead by threads, batched by padded shape, handed out in order.

The plain model and the fast detector, evaluation and `frcnn detect` all run this. Memory is bounded, whatever
the number of images. An item that fails raises in its turn: whatever was made of the items before it is
delivered first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from frcnn.as_pixels import Image, is_one_image, naming
from frcnn.checked import check_whole
from frcnn.config import DataConfig, ModelConfig
from frcnn.inference.hardware import available_cpus
from frcnn.inference.shapes import few_shapes, smallest_holding
from frcnn.inference.sources import expand
from frcnn.preprocess import Prepared, check_size, prepare, stack_pixels
from frcnn.structures import Batch, Detections, Download, upload

Item = TypeVar("Item")
Result = TypeVar("Result")
Extra = TypeVar("Extra")


class Predictor:
    """A detector in either form: `FasterRCNN` and `FastDetector` differ in `_run` alone.

    No ABC, so that a detector may also do without the three below by having `results` of its own.
    """

    config: ModelConfig
    data: DataConfig
    class_names: tuple[str, ...]
    few_shapes = False
    """Whether the network sees few input shapes: images are padded more, and smaller batches filled up."""
    shape: tuple[int, int] | None = None
    """(height, width) of the only input that the network takes, which images are made to fit too."""
    batch: int | None = None
    """Images that the network takes at once, where their number is fixed."""

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Equal for detectors of equal weights and configuration."""
        raise NotImplementedError

    def _run(self, images: Tensor, sizes: Tensor, scales: Tensor, details: bool) -> tuple[Tensor, ...]:
        """As `FasterRCNN.detect_padded`, in evaluation mode."""
        raise NotImplementedError

    def detect(
        self, batch: Batch, scales: Sequence[tuple[float, float]], details: bool = False
    ) -> list[Detections]:
        """Detections of each image, their boxes divided by the image's (x, y) scale; with details also each
        one's class probabilities and box features."""
        return self._launch(batch.images, batch.sizes, scales, details)()

    @overload
    def predict(
        self,
        images: np.ndarray | Tensor | PIL.Image.Image,
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        rgb: bool = False,
        details: bool = False,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        rgb: bool = False,
        details: bool = False,
    ) -> list[Detections]: ...
    @overload
    def predict(
        self,
        images: Image | Iterable[Image],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        rgb: bool = False,
        details: bool = False,
    ) -> Detections | list[Detections]: ...
    def predict(
        self,
        images: Image | Iterable[Image],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        rgb: bool = False,
        details: bool = False,
    ) -> Detections | list[Detections]:
        """Detect objects in one image or several, in evaluation mode; threads may do so at the same time.

        An image's detections do not depend on the images beside it, as only images that pad to the same shape
        share a batch. On a CPU images go through the network one by one, which is as fast, so `batch_size`
        has no effect and the result is the same to the bit however an image is passed (for one number of
        torch's threads). On a GPU, where libraries may choose other algorithms for another number of images,
        results of other batch sizes, and of the last, smaller batch, are the same up to rounding.

        images: a path, URL, array, tensor or Pillow image; a folder or a pattern with * for all images that
            it names; or any number of these. Arrays are BGR, as cv2.imread gives them;
            `frcnn.as_pixels.as_bgr` says which shapes and types they may have.
        size: (long side, short side) that images are resized to fit, by default the recipe's.
        batch_size: images that go through a GPU's network together.
        rgb: arrays and tensors are RGB instead.
        details: also each detection's probabilities of all classes and features of its box.
        Returns one Detections for one image and a list for several, boxes in pixels of the originals.
        Raises ImageError or TypeError, naming it, for an image that cannot be used.
        """
        images = expand(images, self.data.channels)
        check_whole("batch_size", batch_size, 1)
        if is_one_image(images):
            self.check_size(size)
            return self._one(self.prepare(images, size, rgb), details)
        return list(self.stream(images, size, batch_size, rgb=rgb, details=details))

    def stream(
        self,
        images: Image | Iterable[Image],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        threads: int | None = None,
        rgb: bool = False,
        details: bool = False,
    ) -> Iterator[Detections]:
        """`predict` for any number of images, yielding in their order while later ones are still read.

        Threads decode and resize ahead, and a GPU is given the next batch before the last one's result is
        awaited. An image that cannot be used raises as in `predict`, after the results of all images before
        it; a new stream can go on behind it.
        threads: for decoding; by default one on a CPU device, whose cores the network needs, else up to 8.
        """
        self.check_size(size)

        def read(item: tuple[int, Image]) -> tuple[Prepared, None]:
            with naming(item[0]):
                return self.prepare(item[1], size, rgb), None

        images = expand(images, self.data.channels)
        items = enumerate([images] if is_one_image(images) else images)
        return _detections_of(self.results(items, read, batch_size, threads, details))

    def results(
        self,
        items: Iterable[Item],
        read: Callable[[Item], tuple[Prepared | None, Extra]],
        batch_size: int = 1,
        threads: int | None = None,
        details: bool = False,
    ) -> Generator[tuple[Extra, Detections | None], None, None]:
        """`stream` for items that carry more than an image.

        read: called in a thread; returns the image and whatever is wanted beside its detections. In place of
        an image that cannot be used it may return None, whose detections are None.
        Raises OptionError for options out of range; while it is iterated, what `read` raises.
        """
        threads, batch_size = self._settled(threads, batch_size)

        def shaped(item: Item) -> tuple[Prepared | None, Extra]:
            image, extra = read(item)
            return None if image is None else self._shaped(image), extra

        ready = prepared_ahead(items, shaped, threads, ahead=2 * max(threads, batch_size))
        launch = partial(self._launch_prepared, details=details, least=batch_size if self.few_shapes else 1)
        return batched(ready, launch, batch_size, overlap=self.device.type != "cpu")

    def _settled(self, threads: int | None, batch_size: int) -> tuple[int, int]:
        """Both, as this detector takes them. Raises OptionError for what is out of range."""
        on_cpu = self.device.type == "cpu"
        if threads is None:
            threads = 1 if on_cpu else min(8, available_cpus())
        check_whole("batch_size", batch_size, 1)
        check_whole("threads", threads, 1)
        if self.batch is not None:
            batch_size = self.batch
        elif on_cpu:
            batch_size = 1  # nothing is gained by more, and so results do not depend on it
        return threads, batch_size

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Raises OptionError for what `predict` does not take as its size."""
        check_size(size)

    def prepare(self, image: Image, size: tuple[int, int] | None = None, rgb: bool = False) -> Prepared:
        """Read an image and resize it for this detector; as `frcnn.preprocess.prepare`."""
        return prepare(image, self.data, size, rgb, self.shape)

    def _one(self, image: Prepared, details: bool) -> Detections:
        """Detections of an image, without threads."""
        return self._launch_prepared([self._shaped(image)], details)()[0]

    def _shaped(self, image: Prepared) -> Prepared:
        """With few shapes: padded to the smallest that holds it, if it has the recipe's size at most."""
        if self.few_shapes:
            shapes = few_shapes(self.data.size, self.data.pad_divisor)
            image = image._replace(padded_size=smallest_holding(image.size, shapes) or image.padded_size)
        return image

    def _launch_prepared(
        self, batch: Sequence[Prepared], details: bool = False, least: int = 1
    ) -> Callable[[], list[Detections]]:
        """Give images of one padded shape to the device, `least` at least: the missing ones are black."""
        missing = max(0, least - len(batch))
        pixels = stack_pixels(
            [torch.from_numpy(item.pixels) for item in batch],
            len(batch) + missing,
            batch[0].padded_size,
            pin_memory=self.device.type == "cuda",
        )
        sizes = [item.size for item in batch] + [(1, 1)] * missing
        scales = [item.scale for item in batch] + [(1.0, 1.0)] * missing
        finish = self._launch(pixels, sizes, scales, details)
        return lambda: finish()[: len(batch)]

    @torch.no_grad()
    def _launch(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        scales: Sequence[tuple[float, float]],
        details: bool,
    ) -> Callable[[], list[Detections]]:
        """Give a batch to the device, on a GPU without waiting for it; what is returned waits."""
        on_gpu = self.device.type == "cuda"
        # events, graphs and libraries work on the current device, whatever device the tensors are on
        with torch.cuda.device(self.device) if on_gpu else nullcontext():
            size, scale = upload([*sizes, *scales], self.device, torch.float32).split(len(images))
            images = images.to(self.device, non_blocking=True)
            # begun now, so that reading them later does not wait for the batches launched in between
            found = Download(*self._run(images, size, scale, details))

        def finish() -> list[Detections]:
            boxes, scores, labels, counts, *more = found.wait()
            result = []
            for i, n in enumerate(counts.tolist()):
                # copies, which do not hold the whole batch's memory
                box, score, label, *rest = (x[i, :n].clone() for x in (boxes, scores, labels, *more))
                result.append(Detections(box, score, label, self.class_names, *rest))
            return result

        return finish


def _detections_of(results: Generator[tuple[None, Detections | None], None, None]) -> Iterator[Detections]:
    with closing(results):
        for _, found in results:
            assert found is not None  # `read` gives an image or raises
            yield found


def batched(
    ready: Generator[tuple[Prepared | None, Extra], None, None],
    launch: Callable[[Sequence[Prepared]], Callable[[], list[Detections]]],
    batch_size: int,
    overlap: bool,
) -> Generator[tuple[Extra, Detections | None], None, None]:
    """Launch images in batches of one padded shape; what came with each, and its detections, in order.

    overlap: launch a batch before the result of the last one is awaited.
    """

    def launched(batch: list[tuple[int, tuple[Prepared | None, Extra]]]) -> Callable[[], list]:
        images = [image for _, (image, _) in batch if image is not None]  # of one shape: all or none
        finish: Callable[[], Sequence[Detections | None]]
        finish = launch(images) if images else lambda: [None] * len(batch)
        return lambda: [
            (position, (extra, found)) for (position, (_, extra)), found in zip(batch, finish(), strict=True)
        ]

    def shape(item: tuple[Prepared | None, Extra]) -> tuple[int, int] | None:
        return None if item[0] is None else item[0].padded_size

    with closing(ready):  # its threads, also when the stream ends early
        calls = map(launched, batches_by_key(ready, shape, batch_size, patience=4 * batch_size))
        yield from in_order(one_behind(calls) if overlap else (call() for call in calls))


def prepared_ahead(
    items: Iterable[Item], prepare: Callable[[Item], Result], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`prepare` of each item, in order, computed by threads for at most `ahead` items not yet taken.

    An exception of `prepare`, or of `items`, is raised where its result would have been. The threads end with
    the iterator, also when it is closed early.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:

        def submitted() -> Iterator[Future[Result]]:
            try:
                for item in items:
                    yield pool.submit(prepare, item)
            except Exception as error:
                failed: Future[Result] = Future()
                failed.set_exception(error)
                yield failed

        waiting: deque[Future[Result]] = deque()
        try:
            for future in submitted():
                waiting.append(future)
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches_by_key(
    items: Iterable[Item], key: Callable[[Item], Hashable], batch_size: int, patience: int
) -> Iterator[list[tuple[int, Item]]]:
    """Lists of up to `batch_size` (position, item) whose keys are equal.

    An incomplete batch goes out when its first item is `patience` items old, so that a rare key neither keeps
    its results back nor gathers memory, and before an exception of `items` is raised.
    """
    open_batches: OrderedDict[Hashable, list[tuple[int, Item]]] = OrderedDict()  # oldest first item first
    failure = None
    try:
        for position, item in enumerate(items):
            name = key(item)
            batch = open_batches.setdefault(name, [])
            batch.append((position, item))
            if len(batch) == batch_size:
                yield open_batches.pop(name)
            elif open_batches:
                oldest, batch = next(iter(open_batches.items()))
                if position - batch[0][0] >= patience:
                    yield open_batches.pop(oldest)
    except Exception as error:
        failure = error
    yield from open_batches.values()
    if failure is not None:
        raise failure


def one_behind(launched: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """The results of calls, each made once the next one is at hand, so that a device is never idle meanwhile.

    An exception of `launched` is raised after the call before it was made.
    """
    calls = iter(launched)
    previous = failure = None
    while failure is None:
        try:
            call = next(calls, None)
        except Exception as error:
            call, failure = None, error
        if previous is not None:
            yield previous()
        if call is None:
            break
        previous = call
    if failure is not None:
        raise failure


def in_order(batches: Iterable[list[tuple[int, Item]]]) -> Iterator[Item]:
    """Flatten batches of (position, item) to items by position, each as soon as its turn has come."""
    waiting: dict[int, Item] = {}
    turn = 0
    for batch in batches:
        waiting.update(batch)
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
