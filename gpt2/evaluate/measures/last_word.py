"""Tasks that ask for the word that ends a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures.base import NO_SHOTS, Measured, Prompts, Rows, Setting, Shots, chunks, continuations, fill
from gpt2.evaluate.prefixes import Ids
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.score import Pair, Scored, Scores, encode_pair
from gpt2.evaluate.statistics import Column
from gpt2.evaluate.steps import Progress
from gpt2.evaluate.writing import TOPS, likeliest


@dataclass(frozen=True)
class LastWord:
    """The one word (or, with `token`, only the last token of it) that ends a text: perplexity and greedy accuracy.

    Fields: `before`, `word`. With `stop_words` there is also the accuracy when these are never guessed, with which
    GPT-2's paper approximates that the word is the last of its sentence: `acc` then, and the plain one `acc_any`.
    """

    context: str = "{before}"
    answer: str = " {word}"
    token: bool = False
    stop_words: frozenset[str] = frozenset()
    shots: Shots = NO_SHOTS
    main: str = "ppl"

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"context": self.context, "answer": self.answer}
        found["predicted"] = "the last token" if self.token else "all tokens of the last word"
        return found | ({"stop_words": len(self.stop_words)} if self.stop_words else {})

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.example(item) for item in examples] if setting.shots else []
        prompts = Prompts(scores, self.shots, setting, shown, 0)
        words: list[Scored] = []
        found: list[Scored] = []
        filtered = Column("mean")
        wanted = looked_at = min(TOPS, scores.tokenizer.vocab_size)
        for chunk in chunks(items, setting.progress):
            pairs = [self._pair(scores, prompts, item, number) for number, item in enumerate(chunk.items, chunk.start)]
            words += continuations(scores, pairs, chunk.progress)
            asked = [last_token(pair) for pair in pairs] if self.token else pairs
            found += continuations(scores, asked, chunk.progress) if self.token else words[chunk.start :]
            if self.stop_words:
                tops = likeliest(scores, [context for context, _ in asked])
                looked_at = min(looked_at, *map(len, tops))
                filtered.rows += self._filtered(scores, asked, tops, chunk.progress)
        columns = {
            "ppl": Column("perplexity", [(-each.log_likelihood, 1.0) for each in found]),
            "acc": Column("mean", [(float(each.greedy), 1.0) for each in found]),
        }
        if self.stop_words:
            columns["acc_any"] = columns["acc"]
            columns["acc"] = filtered
        if self.token:
            columns["ppl_word"] = Column("perplexity", [(-each.log_likelihood, 1.0) for each in words])
            columns["acc_word"] = Column("mean", [(float(each.greedy), 1.0) for each in words])
        facts = prompts.facts() | ({"likeliest_looked_at": looked_at} if looked_at < wanted else {})
        return Measured({self.main: columns[self.main], **columns}, len(items), facts)

    def example(self, item: Fields) -> Example:
        return Example(fill(self.context, item), fill(self.answer, item), item.get("id"))

    def _pair(self, scores: Scores, prompts: Prompts, item: Fields, number: int) -> Pair:
        example = self.example(item)
        (text,) = prompts.texts([example], number)
        return encode_pair(scores.tokenizer, text, example.answer)

    def _filtered(self, scores: Scores, asked: Sequence[Pair], tops: Sequence[Ids], progress: Progress | None) -> Rows:
        """Right if the first token of the answer is the likeliest that is no stop word, and greedy from there on."""
        firsts = [next((id for id in top if not self._stops(scores, id)), -1) for top in tops]
        rest = [([*context, after[0]], after[1:]) for context, after in asked if len(after) > 1]
        others = iter(continuations(scores, rest, progress) if rest else [])
        rows: Rows = []
        for (_, after), token in zip(asked, firsts, strict=True):
            follows = next(others).greedy if len(after) > 1 else True
            rows.append((float(token == after[0] and follows), 1.0))
        return rows

    def _stops(self, scores: Scores, token: int) -> bool:
        return scores.tokenizer.decode([token]).strip().lower() in self.stop_words


def last_token(pair: Pair) -> Pair:
    context, after = pair
    return [*context, *after[:-1]], after[-1:]
