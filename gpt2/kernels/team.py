"""The threads that do a step together, and what they do when the machine has no time for them.

A thread waits for its next step by spinning for some milliseconds (a text's next token comes sooner), then sleeps.
The kernels hold no interpreter lock and raise nothing. One caller at a time; results do not depend on the number of
workers, so it may change from step to step: where another process takes a core away, a barrier costs more than the
second core brings, and one worker goes on alone for a while.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

import numpy as np

from gpt2.errors import UserError
from gpt2.kernels import cpu
from gpt2.kernels import plan as at

SPIN_ROUNDS = 100_000  # pauses, some milliseconds: longer than choosing the tokens of many streams takes
NAP = 0.05  # seconds between a sleeper's own looks at whether it was called
STEPS_ALONE = 64  # before a loaded machine is tried with all workers again
WAIT_SECONDS = 35e-6  # at least, for each wait that the kernels count
LOADED = 0.4  # of the last steps' time spent in waits: the sign of a core that others use
MEMORY = 0.8  # weight of what was before in that average


class Team:
    """Workers of one plan. `run()` does the plan's step, one call at a time; close() lets the threads go."""

    def __init__(self, plan: np.ndarray, workers: int) -> None:
        self.plan, self.workers = plan, workers
        line = at.LINE
        self._words = np.zeros((5 + workers) * line, np.int64)  # each counter on a cache line of its own
        start = self._words.ctypes.data
        for place, field in enumerate((at.BARRIER, at.ABORT, at.CALL, at.WAITS, at.PARKED)):
            plan[field] = start + place * line * 8
        self._alone = 0  # steps that one worker still does by itself
        self._strain = 0.0  # share of the last steps' time that was spent waiting
        self._start()

    def run(self) -> None:
        """Do the step that the plan describes, with all workers or, on a loaded machine, with one."""
        if self._process != os.getpid():
            self._start()  # a fork has no threads
        alone = self.workers == 1 or self._alone > 0
        self._set_workers(1 if alone else self.workers)
        before, start = self._word(3), time.perf_counter()
        for worker in range(1, int(self.plan[at.WORKERS])):
            if self._word(4 + worker):  # asleep; waking one too often does no harm
                self._wake[worker].release()
        if cpu.take_part(self.plan, 0, 0, 0)[1]:
            self._abandon()
        self._alone = max(0, self._alone - 1)
        waited = (self._word(3) - before) * WAIT_SECONDS / (time.perf_counter() - start)
        self._strain = MEMORY * self._strain + (1 - MEMORY) * min(1.0, waited)
        if self._strain > LOADED:
            self._alone, self._strain = STEPS_ALONE, 0.0

    def close(self) -> None:
        """Let the threads end; a team that nobody holds any more does so by itself."""
        self._dismiss()

    def _start(self) -> None:
        self._process = os.getpid()
        self._words[:] = 0
        for worker in range(1, self.workers):
            self._words[(4 + worker) * at.LINE] = 1  # asleep
        self._wake = [threading.Semaphore(0) for _ in range(self.workers)]
        cpu.take_part(self.plan, self.workers, 0, 1)  # compiled here: a step does not wait for that; nobody's words
        closed = threading.Event()
        self._dismiss = weakref.finalize(self, dismiss, closed, self._wake)
        for worker in range(1, self.workers):
            arguments = (self.plan, self._words, worker, self._wake[worker], closed)
            threading.Thread(target=work, args=arguments, daemon=True, name=f"gpt2-{worker}").start()

    def _word(self, place: int) -> int:
        return int(self._words[place * at.LINE])

    def _set_workers(self, count: int) -> None:
        if self.plan[at.WORKERS] != count:
            barrier = self._words[: at.LINE]
            barrier[0] = -(-int(barrier[0]) // count) * count  # a barrier counts in whole rounds
            self.plan[at.WORKERS] = count

    def _abandon(self) -> None:
        """A worker did not come: go on without the others. The word stays set: whoever comes late gives up too."""
        self.workers = 1
        raise UserError(
            "a worker thread of the processor's kernels did not answer; this text is lost, later ones use one thread "
            "(GPT2_THREADS=1 does so from the start)"
        )


def work(plan: np.ndarray, words: np.ndarray, worker: int, wake: threading.Semaphore, closed: threading.Event) -> None:
    """A thread's life. It holds what it looks at while it waits (the words), but not the team, which may go."""
    seen = 0
    while True:
        woken = wake.acquire(timeout=NAP)
        if closed.is_set():
            return
        called = words[2 * at.LINE] != seen
        seen, given_up = cpu.take_part(plan, worker, seen, SPIN_ROUNDS if called or woken else 1)
        if given_up:
            return


def dismiss(closed: threading.Event, wake: list[threading.Semaphore]) -> None:
    """Wake every thread a last time."""
    closed.set()
    for semaphore in wake:
        semaphore.release()
