"""What a model answers to the prompts of verbs.py: texts, translations line by line, the surest answer, labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.evaluate.measures.base import continuations
from gpt2.evaluate.measures.choose import compared
from gpt2.evaluate.metrics import sentences
from gpt2.evaluate.pieces import pieces
from gpt2.evaluate.prompts import Example, Prompt
from gpt2.evaluate.score import Pair, Scorer, encode_pair
from gpt2.evaluate.verbs import Asker, Long
from gpt2.evaluate.writing import AT_ONCE, parts
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.checkpoint.classifier import Classifier
    from gpt2.inference.sampling import SamplingParams
    from gpt2.tokenizer.bpe import Tokenizer

WAYS = {"token": "token", "sum": "sum", "character": "character", "answer": "free"}  # --by -> measures/choose.py
FREE = "Answer:"  # GPT-3's paper, section 2.4: P(completion | context) / P(completion | "Answer:")


def written(scorer: Scorer, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[str]:
    """What the model writes after each prompt, some at a time."""
    for part in parts([prompt.ids for prompt in prompts]):
        yield from scorer.write(part, [params] * len(part))


def translated(scorer: Scorer, asker: Asker, text: str, params: SamplingParams) -> Iterator[str]:
    """Each line of the text in the other language, sentence by sentence as GPT-2's paper does it; empty lines stay."""
    every = [sentences(line) for line in text.split("\n")]
    tell_long(asker, [{"source": sentence} for line in every for sentence in line], "sentences")
    for lines in grouped(every):
        asked = [[asker.prompts({"source": sentence}) for sentence in line] for line in lines]
        found = written(scorer, [prompt for line in asked for prompts in line for prompt in prompts], params)
        for line in asked:
            texts = [asker.verb.clean(next(found)) for prompts in line for _ in prompts]
            yield " ".join(" ".join(texts).split())


def tell_long(asker: Asker, items: Sequence[Mapping[str, str]], what: str) -> None:
    """Say how many of these do not fit the context, and what of them is read; none is left for --long error."""
    long = sum(not asker.fits(item) for item in items)
    if long and asker.long != "error":
        read = "beginnings are" if asker.long == "cut" else "pieces are"
        say(f"{long:,} of {len(items):,} {what} do not fit the model's context: their {read} read (--long)")


def grouped(lines: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Lines of sentences in groups of about as many sentences as are written at once."""
    group: list[Sequence[str]] = []
    for line in lines:
        group.append(line)
        if sum(map(len, group)) >= AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def surest(scorer: Scorer, asker: Asker, prompts: Sequence[Prompt], params: SamplingParams) -> str:
    """The answer to a question that was asked of each piece of a text: whose tokens are likeliest on average."""
    texts = list(written(scorer, prompts, params))
    if len(texts) == 1:
        return asker.verb.clean(texts[0])
    answers = [place for place, text in enumerate(texts) if asker.verb.clean(text)]
    pairs = [(prompts[place].ids, scorer.tokenizer.encode(texts[place])) for place in answers]
    found = scorer.continuations(pairs)
    sure = [(one.log_likelihood / one.tokens, -place) for one, place in zip(found, answers, strict=True)]
    return asker.verb.clean(texts[-max(sure)[1]]) if sure else ""


@dataclass(frozen=True)
class Likelihoods:
    """Labels compared by how likely a model finds them as answers; `by` is one of WAYS."""

    labels: Sequence[str]
    by: str = "token"

    @property
    def options(self) -> list[Example]:
        return [Example("", f" {label}") for label in self.labels]

    def __call__(self, scorer: Scorer, asker: Asker, texts: Sequence[Sequence[Prompt]]) -> list[dict[str, float]]:
        """Each label's value in nats for each text, the highest the best; of a text in pieces the mean over them."""
        pairs = [self._pair(asker, prompt, option) for text in texts for prompt in text for option in self.options]
        alone = [encode_pair(scorer.tokenizer, FREE, option.answer) for option in self.options]
        found = continuations(scorer, [*pairs, *(alone if self.by == "answer" else [])], None)
        free, each = found[len(pairs) :], len(self.labels)
        rows = iter(
            compared(WAYS[self.by], found[start : start + each], free, self.options)
            for start in range(0, len(pairs), each)
        )
        return [mean_of(self.labels, [next(rows) for _ in text]) for text in texts]

    def _pair(self, asker: Asker, prompt: Prompt, option: Example) -> Pair:
        """In a dialogue the answer begins a line of its own, without the space that stands before it elsewhere."""
        if asker.chat:
            return prompt.ids, asker.tokenizer.encode(option.answer.strip())
        return encode_pair(asker.tokenizer, prompt.text, option.answer)


@dataclass(frozen=True)
class Head:
    """Labels by the head of a tuned classifier (checkpoint/classifier.py)."""

    classifier: Classifier
    tokenizer: Tokenizer
    long: Long = "cut"

    def __call__(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Each label's log-probability for each text; of a text in pieces the mean over them."""
        read = [self._pieces(text) for text in texts]
        rows = iter(self.classifier.logits([ids for text in read for ids in text]).log_softmax(-1).tolist())
        return [mean_of(self.classifier.labels, [next(rows) for _ in text]) for text in read]

    def tell_long(self, texts: Sequence[str]) -> None:
        """Say how many texts do not fit the context, and what of them is read."""
        limit = self.classifier.module.config.context_length
        long = sum(len(self.tokenizer.encode(text)) > limit for text in texts)
        if long and self.long != "error":
            read = "beginnings are" if self.long == "cut" else "pieces are"
            say(
                f"{long:,} of {len(texts):,} texts pass the model's context of {limit:,} tokens: "
                f"their {read} read (--long)"
            )

    def _pieces(self, text: str) -> list[list[int]]:
        limit, ids = self.classifier.module.config.context_length, self.tokenizer.encode(text)
        if len(ids) <= limit:
            return [ids]
        if self.long == "error":
            raise UserError(
                f"a text of {len(ids):,} tokens passes the model's context of {limit:,}; use --long cut or walk"
            )
        if self.long == "cut":
            return [ids[:limit]]
        return [self.tokenizer.encode(piece) for piece in pieces(text, self.tokenizer, limit)]


def mean_of(labels: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Each label's mean over the rows."""
    return {label: math.fsum(row[n] for row in rows) / len(rows) for n, label in enumerate(labels)}
