"""Ctrl-C, SIGTERM and a closed terminal end a run, between two micro-batches; a second Ctrl-C ends it at once.

A second SIGTERM does not: whoever stops a group of processes (torchrun, systemd) sends each more than one. And a
terminal whose closing the process was told to ignore (`nohup`) may close.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.runtime import say
from gpt2.train.loop import Run

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

HANGUP = getattr(signal, "SIGHUP", None)
PATIENCE = 0.5  # seconds within which two signals are one request


class StopRequest:
    """Which signal asked this process to end the run, if any did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stopping_on_signals(run: Run) -> Iterator[StopRequest]:
    """While inside, signals set `run.asked` instead of killing; only the main thread may ask for that.

    Among several processes it is enough that one is asked: the loop agrees once a step, which is then taken whole.
    """
    request, first = StopRequest(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.signal is not None:
            if number == signal.SIGINT and time.monotonic() - first > PATIENCE:
                raise KeyboardInterrupt
            return
        request.signal, run.asked, first = signal.Signals(number), True, time.monotonic()
        say("stopping and saving; Ctrl-C once more to stop at once")

    nohup = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    heard = [number for number in SIGNALS if not (nohup and number == HANGUP)]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
