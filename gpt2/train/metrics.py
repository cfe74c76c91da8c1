"""RUN/metrics.jsonl: one JSON object a line, by step; what a report, `gpt2 runs` and a resumed run read."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpt2 import atomic
from gpt2.runtime import say

NAME = "metrics.jsonl"
MOST_WAITING = 50_000  # lines kept in memory while they cannot be written
RETRY_SECONDS = 5.0  # between attempts at a file that could not be written


class Tracker(Protocol):
    """Where lines go besides the file; see trackers.py."""

    def write(self, step: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """Append-only; a resumed run first forgets what came after its checkpoint.

    A line that cannot be written (a full disk, a folder that has gone) is no reason to end a run: it waits in memory
    for better times. Without a run's folder (`None`, in all processes but the main one) nothing is written at all.
    """

    def __init__(self, run: Path | None, resume_step: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self.path = run and run / NAME
        self.trackers = trackers
        self.waiting: deque[str] = deque(maxlen=MOST_WAITING)
        self.dropped = 0
        self.failed_at: float | None = None  # time.monotonic() of the last attempt, while the file cannot be written
        if self.path:
            forget_after(self.path, resume_step)
            self.path.open("ab").close()  # where even this fails, the run has not begun: the user can mend it

    def write(self, step: int, **values: Any) -> None:
        """One line, on disk's way at once: a killed process loses nothing that was printed. `time`: Unix seconds."""
        if not self.path:
            return
        line = finite({"step": step, **values, "time": round(time.time(), 1)})
        self.dropped += len(self.waiting) == MOST_WAITING
        self.waiting.append(json.dumps(line) + "\n")
        if self.failed_at is None or time.monotonic() - self.failed_at > RETRY_SECONDS:
            self.flush(self.path)
        for tracker in self.trackers:
            tracker.write(step, values)

    def flush(self, path: Path) -> None:
        """Try to write what waits; says so when that begins to fail, and when it works again."""
        try:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)  # the run's own folder, not the disk that it was on
                say(f"{path}: has gone; a new one is begun")
            append(path, "".join(self.waiting).encode("utf-8"))
        except OSError as error:
            if self.failed_at is None:
                say(f"{path}: {(error.strerror or str(error)).lower()}; training goes on, the lines wait in memory")
            self.failed_at = time.monotonic()
            return
        if self.failed_at is not None:
            say(f"{path}: written again" + self.lost())
        self.waiting.clear()
        self.dropped, self.failed_at = 0, None

    def lost(self) -> str:
        return f"; {self.dropped:,} lines are lost" if self.dropped else ""

    def close(self) -> None:
        """Try once more what still waits, and let the trackers end."""
        if self.path and self.waiting:
            self.flush(self.path)
        if self.waiting:
            say(f"{self.path}: the last {len(self.waiting):,} lines could not be written" + self.lost())
            self.waiting.clear()
        for tracker in self.trackers:
            tracker.close()


def append(path: Path, data: bytes) -> None:
    """All of it or nothing: what a full disk cut short is taken back."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def forget_after(path: Path, step: int) -> None:
    """Take out the lines of later steps, and what a kill left of a line."""
    if not path.exists():
        return
    lines, damaged = parse(path)
    kept = [line for line in lines if line["step"] <= step]
    if damaged or len(kept) < len(lines):
        atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines; one cut off by a kill or damaged is left out."""
    return parse(run / NAME)[0]


def parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that can be read, each an object with a whole number `step`, and how many cannot."""
    *texts, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = [parse_line(text) for text in texts if text.strip()]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines) + bool(rest)


def parse_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def finite(value: Any) -> Any:
    """The same with None for what JSON cannot say: infinities and what is no number."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The values of `key` that are finite numbers, in order."""
    return [float(line[key]) for line in lines if is_number(line.get(key))]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
