"""A thread beside the steps, for what may take its time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

import torch

YIELDING = 10  # niceness of the thread, where threads may have one: the steps come first


class Background:
    """One piece of work at a time in a thread of its own; what it failed with waits for whoever asks."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether the work ended in an error that nobody has asked for yet."""
        return self._error is not None

    @property
    def running(self) -> bool:
        """Whether the work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before must have been joined."""
        assert self._thread is None
        device = current_gpu()

        def run() -> None:
            yield_to_others()
            if device is not None:
                torch.cuda.set_device(device)  # each thread has a current one of its own
            try:
                work()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Let the work go on for so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def join(self) -> Exception | None:
        """Wait for the work to end; its error, if it had one, is handed over once."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        return error


def current_gpu() -> int | None:
    """The GPU of the thread that asks; None where CUDA is not in use."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def yield_to_others() -> None:
    """Lower this thread's priority; Linux alone can, elsewhere it would be the whole process's."""
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), YIELDING)
