"""The loss of given text: a runner reads windows of tokens and says how likely each token was. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.base import Runner


def windows(tokens: Sequence[int], context_length: int) -> list[Sequence[int]]:
    """A text cut so that each of its tokens but the first is predicted once, after all of its window before it.

    Windows overlap by one token: the last to be predicted is the first that the next window reads.
    """
    return [tokens[start : start + context_length + 1] for start in range(0, len(tokens) - 1, context_length)]


def losses(runner: Runner, texts: Iterable[Sequence[int]]) -> Iterator[list[float]]:
    """For each text, at most context_length + 1 tokens, the loss (nats) of its second token, third and so on.

    Each is read by itself into the runner's first pages, in chunks of what a step may read and answer; the pool must
    hold one text. What another made of the runner's pages is overwritten.
    """
    chunk = min(runner.max_tokens, runner.max_outputs, runner.rings.max_span)
    for text in texts:
        pages = range(-(-(len(text) - 1) // PAGE_SIZE))
        found: list[float] = []
        for start in range(0, len(text) - 1, chunk):
            targets = text[start + 1 : start + 1 + chunk]
            read = text[start : start + len(targets)]
            runner.step([Span(read, start, pages, outputs=len(read), ring=range(runner.rings.each))])
            found.extend(-logprob for logprob in runner.logprobs(targets))
        yield found


def mean_loss(runner: Runner, texts: Iterable[Sequence[int]]) -> float:
    """Nats a token over all that is predicted in the texts; ValueError if nothing is."""
    total, count = 0.0, 0
    for found in losses(runner, texts):
        total, count = total + sum(found), count + len(found)
    if not count:
        raise ValueError("a text of one token predicts nothing")
    return total / count
