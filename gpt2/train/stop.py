"""Ctrl-C, SIGTERM and a closed terminal end a run after the step in hand; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.runtime import say
from gpt2.train.loop import Run

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequest:
    """Which signal asked this process to end the run, if any did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stopping_on_signals(run: Run) -> Iterator[StopRequest]:
    """While inside, signals set `run.asked` instead of killing; only the main thread may ask for that.

    Among several processes it is enough that one is asked: the loop agrees once a step.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal, run.asked = signal.Signals(number), True
        say("stopping after this step and saving; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
