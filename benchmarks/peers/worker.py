"""The worker's side: reads a line `[method, arguments...]`, answers with a line of JSON. Started by engines.Worker."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers.engines import Format

Ids = Sequence[int]


class Turns:
    """What can be asked of an engine; rates are tokens a second."""

    def __init__(self, format: Format, path: Path, threads: int) -> None:
        self.format, self.path, self.threads = format, path, threads
        self.engine: Any = None

    def load(self) -> float:
        """Seconds from the file to the first token after one token of prompt; imports and compilation are not in it."""
        if self.engine is not None:
            self.engine.close()
        start = time.perf_counter()
        self.engine = self.format.open(self.path, self.threads)
        self.engine.prefill([1])
        return time.perf_counter() - start

    def prefill(self, ids: Ids) -> float:
        """Prompt tokens a second."""
        return len(ids) / float(self.engine.prefill(ids))

    def forward(self, ids: Ids) -> float:
        """Prompt tokens a second, with logits after every token."""
        return len(ids) / float(self.engine.forward(ids))

    def decode(self, prompt: Ids, count: int) -> float:
        """New tokens a second, from the first to the last."""
        _, times = self.engine.decode(prompt, count)
        assert len(times) == count, f"{len(times)} times for {count} tokens"
        return (count - 1) / (times[-1] - times[0])

    def streams(self, prompts: Sequence[Ids], count: int) -> float:
        """New tokens a second of all texts together, the reading of their prompts included."""
        texts, seconds = self.engine.streams(prompts, count)
        assert [len(text) for text in texts] == [count] * len(prompts)
        return len(prompts) * count / float(seconds)

    def mixed(self, prompts: Sequence[Ids], counts: Sequence[int]) -> float:
        """New tokens a second of requests of mixed length (ours only)."""
        return sum(counts) / float(self.engine.mixed(prompts, counts))

    def losses(self, windows: Sequence[Ids]) -> list[float]:
        """The sum of losses (nats) of every token but each window's first, and their number."""
        total, count = 0.0, 0
        for ids in windows:
            losses = self.engine.losses(ids) if hasattr(self.engine, "losses") else of_logits(self.engine, ids)
            total, count = total + sum(losses), count + len(losses)
        return [total, count]


def of_logits(engine: Any, ids: Ids) -> list[float]:
    """Losses of every token but the first, from an engine that gives its logits (T, V)."""
    logits = np.asarray(engine.logits(ids)[:-1], np.float64)
    highest = logits.max(-1)
    norm = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
    losses: list[float] = (norm - logits[np.arange(len(logits)), ids[1:]]).tolist()
    return losses


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    engine, kind, path, threads = sys.argv[1:]
    turns = Turns(Format(engine, kind), Path(path), int(threads))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(turns, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
