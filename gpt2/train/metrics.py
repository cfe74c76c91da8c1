"""RUN/metrics.jsonl: one JSON object a line, by step; what a report and a resumed run read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from gpt2 import atomic

NAME = "metrics.jsonl"


class MetricsFile:
    """Append-only; a resumed run first forgets what came after its checkpoint."""

    def __init__(self, run: Path, resume_step: int = 0) -> None:
        self.path = run / NAME
        if self.path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= resume_step]
            atomic.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, **values: Any) -> None:
        """One line, on disk's way at once: a killed process loses nothing that was printed."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: every line was flushed when it was written
            self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a kill is left out."""
    lines = (run / NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
