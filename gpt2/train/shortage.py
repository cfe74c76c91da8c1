"""Memory that one of several processes runs out of: the run notes how many rows were too many, and goes on with fewer.

A lone process takes its step again (loop.py). Among several the others wait in that step's sums and cannot be asked,
so the run ends; torchrun, or a person, starts it anew from its newest checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

from gpt2 import atomic
from gpt2.runtime import say
from gpt2.train.loop import Run

NOTE = "out_of_memory.json"


def note_rows(out: Path, rows: int) -> None:
    """So many rows at a time did not fit."""
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / NOTE, json.dumps({"rows": rows}) + "\n")


def fit_noted(run: Run, out: Path, chosen: bool) -> None:
    """Take fewer rows at a time than were too many before; a number that was `chosen` for this start stands.

    All processes of a run that goes on call it.
    """
    path = out / NOTE
    if chosen:
        run.state.halvings = 0  # of another number of rows
        if run.ranks.is_main:
            path.unlink(missing_ok=True)
        return
    most: int | None = run.ranks.share(noted(path))
    if most is None:
        return
    before = run.state.halvings
    while (run.micro_batch_size >> run.state.halvings) >= max(2, most):
        run.state.halvings += 1
    if run.state.halvings > before:
        rows = run.micro_batch_size >> run.state.halvings
        say(
            f"{most} rows at a time were too many for a process's memory: going on with {rows}, the same rows to a step"
        )


def noted(path: Path) -> int | None:
    """What the note says; None where there is none that can be read."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
