"""CTranslate2's generator, greedy, token ids in and out (its vocabulary is the ids as text)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

Array = np.ndarray


class CTranslate2:
    """One CTranslate2 folder. Times are those of `time.perf_counter`."""

    def __init__(self, path: Path, threads: int, kind: str) -> None:
        self.generator = ctranslate2.Generator(str(path), compute_type=kind, intra_threads=threads)

    def close(self) -> None:
        """Give the memory back."""
        self.generator.unload_model()

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to the first token: `generate_batch` scores the last position only."""
        start = time.perf_counter()
        self._generate([ids], 1)
        return time.perf_counter() - start

    def forward(self, ids: Sequence[int]) -> float:
        """Seconds to read the prompt with logits after every token, which is all that `forward_batch` can do."""
        start = time.perf_counter()
        self.generator.forward_batch([list(ids)])
        return time.perf_counter() - start

    def decode(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """The next `count` tokens and the time at which each was there."""
        times: list[float] = []

        def seen(result: Any) -> bool:
            times.append(time.perf_counter())
            return False

        texts = self._generate([prompt], count, seen)
        return texts[0], times

    def streams(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
        """Continue all prompts together; the texts and the seconds of it all."""
        start = time.perf_counter()
        texts = self._generate(prompts, count)
        return texts, time.perf_counter() - start

    def logits(self, ids: Sequence[int]) -> Array:
        """Logits after each token, (T, V)."""
        return np.array(self.generator.forward_batch([list(ids)]))[0]

    def _generate(self, prompts: Sequence[Sequence[int]], count: int, callback: Any = None) -> list[list[int]]:
        results = self.generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            max_length=count,
            min_length=count,
            beam_size=1,
            include_prompt_in_result=False,  # so the prompt is read at once
            callback=callback,
        )
        texts = [list(result.sequences_ids[0]) for result in results]
        assert all(len(text) == count for text in texts)
        return texts
