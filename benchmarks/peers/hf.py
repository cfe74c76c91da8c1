"""transformers' GPT2LMHeadModel and its `generate`, greedy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

Array = np.ndarray


class Stamps(transformers.generation.streamers.BaseStreamer):
    """The time at which each new token was there; `generate` hands over the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        self.times.pop(0)


class Transformers:
    """One model folder. Times are those of `time.perf_counter`."""

    def __init__(self, path: Path, threads: int, kind: str) -> None:
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, kind)).eval()
        self.cache: str | None = None

    def close(self) -> None:
        """Give the memory back."""
        del self.model

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds to read the prompt, logits after its last token only."""
        start = time.perf_counter()
        self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - start

    def decode(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """The next `count` tokens and the time at which each was there."""
        self.cache = self.cache or self._faster_cache(prompt)
        stamps = Stamps()
        texts = self._generate([prompt], count, self.cache, stamps)
        return texts[0], stamps.times

    def streams(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
        """Continue all prompts (of one length) together; the texts and the seconds of it all."""
        self.cache = self.cache or self._faster_cache(prompts[0])
        start = time.perf_counter()
        texts = self._generate(prompts, count, self.cache)
        return texts, time.perf_counter() - start

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Array:
        """Logits after each token, (T, V)."""
        return self.model(torch.tensor([ids])).logits[0].float().numpy()

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Sequence[int]], count: int, cache: str, streamer: Stamps | None = None
    ) -> list[list[int]]:
        ids = torch.tensor([list(prompt) for prompt in prompts])
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=self.model.config.vocab_size - 1,
            cache_implementation=cache,
            streamer=streamer,
        )
        texts: list[list[int]] = out[:, ids.size(1) :].tolist()
        return texts

    def _faster_cache(self, prompt: Sequence[int]) -> str:
        """`static` or `dynamic`: whichever writes 16 tokens sooner on this machine."""
        times: dict[str, float] = {}
        for cache in ("static", "dynamic") * 2:
            stamps = Stamps()
            self._generate([prompt], 16, cache, stamps)
            times[cache] = min(times.get(cache, 1e9), stamps.times[-1] - stamps.times[0])
        return min(times, key=lambda cache: times[cache])
