"""Tasks that a model answers in its own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures.base import NO_SHOTS, Columns, Measured, Prompts, Setting, Shots, chunks, fill
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.score import Scores
from gpt2.evaluate.statistics import Column
from gpt2.evaluate.writing import write

GREEDY_LINE = Writing()
SEAM = 8  # tokens that a cut text may grow by when it is encoded anew
Score = Callable[[str, Fields], dict[str, tuple[str, tuple[float, ...]]]]  # metric -> its kind, and one item's sums


@dataclass(frozen=True)
class ByLibrary:
    """A score that a library gives which the plain install lacks. `load` is a UserError where it is missing.

    `words` name the library and its settings, for the result.
    """

    score: Score
    load: Callable[[], object]
    words: str

    def __call__(self, text: str, item: Fields) -> dict[str, tuple[str, tuple[float, ...]]]:
        return self.score(text, item)


@dataclass(frozen=True)
class Write:
    """A text that the model writes, against references (field `answers`).

    `score` gives each metric's kind and sums for one item.
    """

    context: str
    score: Score
    answer: str = " {shown}"
    writing: Writing = GREEDY_LINE
    shots: Shots = NO_SHOTS
    clean: Callable[[str], str] = str.strip
    zero_shot: str = ""  # the context where there are no examples, if it is another
    trim: str = ""  # a field that is cut at its end where the prompt is too long, instead of the prompt's beginning

    def settings(self) -> dict[str, Any]:
        compared = {"compared_by": self.score.words} if isinstance(self.score, ByLibrary) else {}
        return {"context": self.context, "answer": self.answer} | self.writing.settings() | compared

    def prepare(self) -> None:
        """UserError where what compares is not installed: to be known before hours of writing."""
        if isinstance(self.score, ByLibrary):
            self.score.load()

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.example(item, setting) for item in examples] if setting.shots else []
        most = min(self.writing.max_new_tokens, scores.context_length // 2)  # a prompt needs its place too
        prompts = Prompts(scores, self.shots, setting, shown, most)
        how = replace(self.writing, max_new_tokens=most)
        texts: list[str] = []
        for chunk in chunks(items, setting.progress):
            asked = [
                scores.tokenizer.encode(prompts.texts([self.asked(scores, item, setting)], number)[0])
                for number, item in enumerate(chunk.items, chunk.start)
            ]
            texts += write(scores, asked, how, setting.seed + chunk.start, chunk.progress)
        columns: Columns = {}
        for text, item in zip(texts, items, strict=True):
            for name, (kind, sums) in self.score(self.clean(text), item).items():
                columns.setdefault(name, Column(kind)).rows.append(sums)
        return Measured(columns, len(items), prompts.facts() | {"max_new_tokens": most})

    def asked(self, scores: Scores, item: Fields, setting: Setting) -> Example:
        """The item without its answer."""
        example = self.example(item, setting)
        over = len(scores.tokenizer.encode(example.context)) + self.writing.max_new_tokens - scores.context_length
        if self.trim and over > 0:
            ids = scores.tokenizer.encode(item[self.trim])
            item = {**item, self.trim: scores.tokenizer.decode(ids[: max(0, len(ids) - over - SEAM)])}
            example = self.example(item, setting)
        return Example(example.context, "", example.id)

    def example(self, item: Fields, setting: Setting) -> Example:
        context = self.zero_shot if self.zero_shot and not setting.shots else self.context
        values = {**item, "shown": item["answers"][0]}
        return Example(fill(context, values), fill(self.answer, values), item.get("id"))


def mean(value: float) -> tuple[str, tuple[float, ...]]:
    """What a metric that is a mean over items gives for one of them."""
    return "mean", (value, 1.0)
