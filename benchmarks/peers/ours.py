"""Ours, through the engine that everyone uses: a packed folder, the processor's runner, `Engine.generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.checkpoint.packed import read_packed
from gpt2.inference.engine import Engine
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.cpu import CpuRunner
from gpt2.inference.sampling import SamplingParams
from gpt2.tokenizer.files import load_tokenizer

STREAMS, CONTEXT = 16, 1024


class Stamped(CpuRunner):
    """The runner, noting when each step's tokens were chosen."""

    times: list[float]

    def choose(self, asks: Any) -> Any:
        choices = super().choose(asks)
        self.times.append(time.perf_counter())
        return choices


class Ours:
    """One packed folder, greedy. Times are those of `time.perf_counter`.

    The engine remembers prompts that it has read: whoever measures gives new ones each time.
    """

    def __init__(self, path: Path, threads: int, kv: str | None = None) -> None:
        self.model, self.threads, self.kv = read_packed(path), threads, kv
        self.runner = Stamped(self.model, STREAMS * CONTEXT // PAGE_SIZE, kv=kv, threads=threads)
        self.runner.times = []
        self.engine = Engine((self.runner, load_tokenizer(path)), max_streams=STREAMS)

    def close(self) -> None:
        """Give threads and memory back."""
        self.runner.close()

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to the first token."""
        start = time.perf_counter()
        self._generate([ids], 1)
        return time.perf_counter() - start

    def decode(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """The next `count` tokens and the time at which each was there."""
        self.runner.times = []
        texts = self._generate([prompt], count)
        return texts[0], self.runner.times[-count:]

    def streams(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
        """Continue all prompts together; the texts and the seconds of it all."""
        start = time.perf_counter()
        texts = self._generate(prompts, count)
        return texts, time.perf_counter() - start

    def mixed(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> float:
        """Seconds for requests of their own lengths, at most STREAMS of them at a time."""
        params = [SamplingParams(max_new_tokens=count, temperature=0.0, ignore_eot=True) for count in counts]
        start = time.perf_counter()
        results = self.engine.generate([list(prompt) for prompt in prompts], params)
        seconds = time.perf_counter() - start
        assert [len(result.tokens) for result in results] == list(counts)
        return seconds

    def losses(self, ids: Sequence[int]) -> list[float]:
        """Minus the log-probability (nats) of each token but the first."""
        losses: list[float] = []
        pages = range(-(-len(ids) // PAGE_SIZE))
        runner = CpuRunner(self.model, len(pages), kv=self.kv, threads=self.threads)  # the engine knows its own's pages
        for start in range(0, len(ids) - 1, runner.max_outputs):
            tokens = ids[start : min(start + runner.max_outputs, len(ids) - 1)]
            runner.step([Span(tokens, start, pages, outputs=len(tokens))])
            losses += [-value for value in runner.logprobs(ids[start + 1 : start + 1 + len(tokens)])]
        runner.close()
        return losses

    def _generate(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=count, temperature=0.0, ignore_eot=True)
        results = self.engine.generate([list(prompt) for prompt in prompts], params)
        return [result.tokens for result in results]


def streamed_bytes(path: Path) -> int:
    """Bytes of weights that one token reads: every matrix but a look-up table of its own, and biases and norms."""
    model = read_packed(path)
    packed = [matrix for name, matrix in model.matrices.items() if name != "wte.weight"]
    matrices = sum(matrix.data.nbytes + (0 if matrix.scales is None else matrix.scales.nbytes) for matrix in packed)
    return matrices + sum(array.nbytes for name, array in model.vectors.items() if name != "wpe.weight")
