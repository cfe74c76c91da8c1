"""A model that is a table: what it thinks of a token depends on the token before it, so that sums are done by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_models import BYTES

from gpt2.evaluate.score import Ids, Pair, Scored
from gpt2.tokenizer.bpe import Tokenizer


class FakeScores:
    """Bytes are tokens. `after[x][y]` is the probability of character y behind x; all others share the rest alike.

    It writes what `texts` says stands behind a prompt that ends so, else nothing.
    """

    def __init__(
        self, after: Mapping[str, Mapping[str, float]] | None = None, texts: Mapping[str, str] | None = None
    ) -> None:
        self.after, self.texts = after or {}, texts or {}
        self.tokenizer: Tokenizer = BYTES
        self.context_length = 4096
        self.read: list[Pair] = []
        self.prompts: list[str] = []

    def probability(self, before: int, token: int) -> float:
        row = self.after.get(self.text([before]), {})
        text = self.text([token])
        return row[text] if text in row else (1 - sum(row.values())) / (256 - len(row))

    def text(self, ids: Ids) -> str:
        return bytes(id for id in ids if id < 256).decode("latin-1")

    def likeliest_after(self, before: int) -> int:
        return max(range(256), key=lambda token: self.probability(before, token))

    def continuations(self, pairs: Sequence[Pair], progress: Any = None) -> list[Scored]:
        self.read += pairs
        return [self._one(*pair) for pair in pairs]

    def _one(self, context: Ids, after: Ids) -> Scored:
        befores = [context[-1], *after[:-1]]
        total = math.fsum(math.log(self.probability(b, token)) for b, token in zip(befores, after, strict=True))
        greedy = all(self.likeliest_after(b) == token for b, token in zip(befores, after, strict=True))
        return Scored(total, greedy, len(after))

    def rolling(self, *words: Any, **names: Any) -> Any:
        raise AssertionError("tasks read windows one by one")

    def greedy(self, prompts: Sequence[Ids], max_new_tokens: Any, stop: Sequence[str] = ()) -> list[str]:
        asked = [self.text(ids) for ids in prompts]
        self.prompts += asked
        return [next((text for end, text in self.texts.items() if prompt.endswith(end)), "") for prompt in asked]

    def likeliest(self, contexts: Sequence[Ids], count: int) -> list[list[int]]:
        return [
            sorted(range(256), key=lambda token: -self.probability(context[-1], token))[:count] for context in contexts
        ]
