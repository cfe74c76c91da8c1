"""Texts that are read from end to end: perplexity per published unit, and bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures.base import Measured, Setting
from gpt2.evaluate.score import Pair, Scores, end_of_text, windows
from gpt2.evaluate.statistics import Column


@dataclass(frozen=True)
class ReadOn:
    """A whole text, each token once: perplexity per canonical unit, or bits.

    `canonical` cuts records into documents, each a text as the model reads it and its number of units *in the file as
    it was published*. `units` are words, bytes or characters; the first of `metrics` is the main one.
    """

    canonical: Callable[[Sequence[Fields]], list[Document]]
    metrics: Mapping[str, tuple[str, str]]  # metric -> (kind, unit)
    note: str = ""  # what counts as a unit, in words

    def settings(self) -> dict[str, Any]:
        return {"denominators": self.note, "per": {name: unit for name, (_, unit) in self.metrics.items()}}

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        if setting.shots:
            raise UserError("a text that is read on takes no examples; leave --shots at 0 for it")
        window = setting.window or scores.context_length
        stride = setting.stride or window
        if not 0 < stride <= window <= scores.context_length:
            raise UserError(
                f"--window {window} --stride {stride}: must be 1 <= stride <= window <= {scores.context_length}"
            )
        documents = self.canonical(items)
        for unit in {unit for _, unit in self.metrics.values()}:
            if not all(document.units[unit] for document in documents) or not documents:
                raise UserError(f"the text is too short to be measured: it has no {unit}; give more --limit")
        cut = [list(cut_text(scores, document.text, window, stride)) for document in documents]
        found = iter(scores.continuations([pair for pairs in cut for pair in pairs], setting.progress))
        columns = {name: Column(kind) for name, (kind, _) in self.metrics.items()}
        tokens = 0
        for document, pairs in zip(documents, cut, strict=True):
            each = [next(found) for _ in pairs]
            total = sum(part.tokens for part in each)
            tokens += total
            for name, (_, unit) in self.metrics.items():
                share = document.units[unit] / total
                columns[name].rows += [(-part.log_likelihood, part.tokens * share) for part in each]
        units = {unit: sum(document.units[unit] for document in documents) for _, unit in self.metrics.values()}
        facts = {"window": window, "stride": stride, "first_token_after": "end-of-text", "tokens": tokens}
        return Measured(columns, len(documents), facts | {"units": units, "bootstrap_over": "windows"})


@dataclass(frozen=True)
class Document:
    text: str
    units: Mapping[str, int]


def cut_text(scores: Scores, text: str, window: int, stride: int) -> Iterator[Pair]:
    """The windows of `Scores.rolling` as pairs, so that each one's part of the whole is known."""
    whole = [*end_of_text(scores.tokenizer), *scores.tokenizer.encode(text)]
    for reading in windows(whole, window, stride):
        silent = len(reading.tokens) - len(reading.targets) + 1
        yield reading.tokens[:silent], reading.targets
