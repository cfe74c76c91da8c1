"""Memory that one of several processes runs out of: the run notes how many rows were too many, and goes on with fewer.

A lone process takes its step again (loop.py). Among several the others wait in that step's sums and cannot be asked,
so the run ends; torchrun, or a person, starts it anew from its newest checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2 import atomic
from gpt2.runtime import say
from gpt2.train.loop import Run, fewer
from gpt2.train.settings import RunSettings

NOTE = "out_of_memory.json"


def note_rows(run: Run, config: RunSettings, rows: int) -> None:
    """So many rows at a time did not fit, as the work is laid out."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / NOTE, json.dumps({"rows": rows, "layout": layout_of(run, config)}) + "\n")


def fit_noted(run: Run, config: RunSettings, chosen: bool) -> None:
    """Take fewer rows at a time than were too many before, if the work is laid out as it was then.

    A number that was `chosen` for this start stands. All processes of a run that goes on call it.
    """
    path = Path(config.out) / NOTE
    if chosen:
        run.state.halvings = 0  # of another number of rows
        if run.ranks.is_main:
            path.unlink(missing_ok=True)
        return
    rows: int | None = run.ranks.share(noted(path, layout_of(run, config)))
    if rows is None or run.micro_batch_size >> run.state.halvings < max(2, rows):
        return
    run.state.halvings = fewer(run.micro_batch_size, rows)
    left = run.micro_batch_size >> run.state.halvings
    say(f"{rows} rows at a time were too many for a process's memory: going on with {left}, the same rows to a step")


def noted(path: Path, layout: str) -> int | None:
    """What the note says of this layout; None where there is none that can be read."""
    try:
        note: Any = json.loads(path.read_text(encoding="utf-8"))
        return int(note["rows"]) if note["layout"] == layout else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def layout_of(run: Run, config: RunSettings) -> str:
    """On what the memory of a row depends, beside the model."""
    return f"{run.ranks.world_size} processes, {run.ranks.data_size} of data, recompute {config.recompute}"
