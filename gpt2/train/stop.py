"""Ctrl-C and SIGTERM end a run after the step in hand; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.runtime import say
from gpt2.train.loop import Run


class StopRequest:
    """Which signal asked the run to end, if any did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stopping_on_signals(run: Run) -> Iterator[StopRequest]:
    """While inside, the two signals set `run.stopping` instead of killing; only the main thread may ask for that."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal, run.stopping = signal.Signals(number), True
        say("stopping after this step and saving; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
