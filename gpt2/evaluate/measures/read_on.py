"""Texts that are read from end to end: perplexity per published unit, and bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures.base import Measured, Setting, chunks
from gpt2.evaluate.prefixes import Ids
from gpt2.evaluate.score import Pair, Scored, Scores, end_of_text, windows
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
        window, stride = window_and_stride(setting.window, setting.stride, scores.context_length)
        documents = self.canonical(items)
        for unit in {unit for _, unit in self.metrics.values()}:
            if not all(document.units[unit] for document in documents) or not documents:
                raise UserError(f"the text is too short to be measured: it has no {unit}; give more --limit")
        cut = [cut_text(scores, document.text, window, stride) for document in documents]
        found: list[Scored] = []
        for chunk in chunks([each for parts in cut for each in parts], setting.progress):
            found += scores.continuations([each.pair for each in chunk.items], chunk.progress)
        columns = {name: Column(kind) for name, (kind, _) in self.metrics.items()}
        tokens, left = 0, iter(found)
        for document, parts in zip(documents, cut, strict=True):
            each = [next(left) for _ in parts]
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


def window_and_stride(window: int, stride: int, context: int) -> tuple[int, int]:
    """What --window and --stride mean to a model with this context; UserError where they cannot be."""
    window = window or context
    stride = stride or window
    if not 0 < stride <= window <= context:
        raise UserError(f"--window {window} --stride {stride}: must be 1 <= stride <= window <= {context}")
    return window, stride


@dataclass(frozen=True)
class Part:
    """A window of a text by its places, as windows that overlap hold each token many times."""

    whole: Ids
    begin: int
    silent: int  # the place of the first token that is predicted
    end: int

    @property
    def pair(self) -> Pair:
        return self.whole[self.begin : self.silent], self.whole[self.silent : self.end]


def cut_text(scores: Scores, text: str, window: int, stride: int) -> list[Part]:
    """The windows of `Scores.rolling`, so that each one's part of the whole is known."""
    whole = [*end_of_text(scores.tokenizer), *scores.tokenizer.encode(text)]
    found = windows(range(len(whole)), window, stride)
    return [Part(whole, each.tokens[0], each.targets[0], each.targets[-1] + 1) for each in found]
