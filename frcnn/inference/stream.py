"""Work on many images at once: prepared ahead by threads, in bounded memory, and batched by shape.

An item that fails raises in its turn: whatever was made of the items before it is delivered first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prepared_ahead(
    items: Iterable[Item], prepare: Callable[[Item], Prepared], threads: int, ahead: int
) -> Iterator[Prepared]:
    """`prepare` of each item, in order, computed by threads for at most `ahead` items not yet taken.

    An exception of `prepare`, or of `items`, is raised where its result would have been. The threads end with
    the iterator, also when it is closed early.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:

        def submitted() -> Iterator[Future[Prepared]]:
            try:
                for item in items:
                    yield pool.submit(prepare, item)
            except Exception as error:
                failed: Future[Prepared] = Future()
                failed.set_exception(error)
                yield failed

        waiting: deque[Future[Prepared]] = deque()
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


def one_behind(launched: Iterable[Callable[[], Prepared]]) -> Iterator[Prepared]:
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
