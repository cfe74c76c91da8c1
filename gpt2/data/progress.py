"""How far a long step has come: a live bar at a terminal, a plain line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpt2.runtime import say

LINE_EVERY = 10.0  # seconds


@contextmanager
def progress(title: str, total: int, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the amount done so far, out of `total`."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar(title, total) as update:
            yield update
    else:
        yield _lines(title, total, unit)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description:>12}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=max(1, total))
        yield lambda done: bar.update(task, completed=min(done, total))


def _lines(title: str, total: int, unit: str) -> Callable[[int], None]:
    begun = last = time.monotonic()

    def update(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY or not 0 < done <= total:
            return
        last = now
        rate = done / (now - begun)
        left = (total - done) / rate
        say(f"{title}: {100 * done / total:.0f} % at {rate / 1e6:.1f} M{unit}/s, {left:.0f} s left")

    return update
