"""The words in which GPT-2's paper asks (Radford et al. 2019, section 3), and how an answer is written.

tasks/ measures with them, verbs.py answers with them. Nothing heavy is imported: help shows these settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2.inference.sampling import SamplingParams


@dataclass(frozen=True)
class Writing:
    """How a text is written. `beams` 1 is greedy unless `top_k` says to draw among so many tokens at temperature 1."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    beams: int = 1
    length_penalty: float = 0.6
    top_k: int = 1

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.beams == 1 and self.top_k == 1

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}
        if self.beams > 1:
            return found | {"beams": self.beams, "length_penalty": self.length_penalty}
        return found | ({"top_k": self.top_k} if self.top_k > 1 else {"greedy": True})

    def params(self, seed: int | None = None) -> SamplingParams:
        """The same without its beams, as an engine takes it."""
        temperature, top_k = (0.0, 0) if self.top_k == 1 else (1.0, self.top_k)
        return SamplingParams(self.max_new_tokens, temperature, top_k, stop=self.stop, seed=seed)


GREEDY = Writing(32, ("\n",))
TURN = "Q: {question}\n\nA:"  # section 3.5, a question after a passage; the paper says only that "A:" ends it
TLDR = "{article}\nTL;DR:"  # section 3.6
DRAWN_BY_TWO = Writing(100, (), top_k=2)
PAIR = "{source} ="  # section 3.7: examples are lines `english sentence = french sentence`
PAIRS_SHOWN = 5  # how many pairs GPT-2 was shown is not stated: chosen
LINE = Writing(200, ("\n",))
FROM_MEMORY = "Q: {question}\nA:"  # section 3.8 shows no prompt: chosen
STORY = Writing(512, (), top_k=40)  # section 8; the length is that of OpenAI's script, half of the context
