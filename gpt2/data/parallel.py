"""Work for threads in batches, results in order, memory flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

BATCH_CHARS = 1 << 20  # what a thread works on at a time


class HasText(Protocol):
    @property
    def text(self) -> str: ...


P = TypeVar("P", bound=HasText)
T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A few threads. They run side by side wherever the work is numpy's, hashlib's or tiktoken's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the items' order; items are drawn only a little ahead."""
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > self.threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(pieces: Iterable[P]) -> Iterator[list[P]]:
    """Group pieces into lists of at least BATCH_CHARS characters, but for the last."""
    batch: list[P] = []
    chars = 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
