"""Runs that end in the midst of their work, and what must be the same to the last bit once they have gone on."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from forked_commands import Command

from gpt2.train.hooks import Log
from gpt2.train.loop import Run, StepResult

TRACE = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")


def trace(run: Path) -> list[tuple[float, ...]]:
    """What must be the same to the last bit; JSON keeps every digit of a float."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [tuple(line[key] for key in TRACE) for line in lines if "train/loss" in line]


def kill_once_on_its_way(process: Command, out: Path, dice: random.Random, while_saving: bool) -> bool:
    """kill -9 a run some time after its first new step (in the midst of a save, if asked to).

    True if it was killed, False if it ended before.
    """
    before = len(trace(out)) if (out / "metrics.jsonl").exists() else 0
    while process.poll() is None and (not (out / "metrics.jsonl").exists() or len(trace(out)) <= before):
        time.sleep(0.01)
    if while_saving:
        while process.poll() is None and not any(out.glob(".step_*.tmp")):
            time.sleep(0.0005)
    else:
        time.sleep(dice.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def failing_at(step: int, act: Callable[[], None] | None = None) -> Callable[..., None]:
    """A Log.__call__ after whose line of this step `act` is done; without one the run breaks off there."""
    original = Log.__call__

    def call(self: Log, run: Run, result: StepResult) -> None:
        original(self, run, result)
        if run.state.step == step:
            if act is None:
                raise ZeroDivisionError
            act()

    return call
