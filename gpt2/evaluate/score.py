"""How likely a model finds given text: continuations of contexts, long texts in windows, greedy answers. No torch.

Everything is in token ids, so that a protocol decides alone how text becomes tokens; `encode_pair` is the usual way.
Log-likelihoods are natural logarithms. A score depends on its own text alone, never on what is scored beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from gpt2.errors import UserError
from gpt2.evaluate.prefixes import Ids, Reading
from gpt2.evaluate.steps import Progress, read
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.inference.engine import Model
    from gpt2.inference.runners.base import Runner
    from gpt2.tokenizer.bpe import Tokenizer

Pair = tuple[Ids, Ids]  # context, continuation
First = Literal["eot", "none"]  # what the first token of a text is predicted after: end-of-text; it is not predicted


@dataclass(frozen=True)
class Scored:
    """A continuation's log-likelihood (nats, the sum over its tokens), and whether greedy decoding writes it."""

    log_likelihood: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Rolled:
    """A text's log-likelihood (nats) over the `tokens` that were predicted, and how it was cut; see `rolling`."""

    log_likelihood: float
    tokens: int
    window: int
    stride: int
    first: First

    def nats_per(self, units: int) -> float:
        """Nats per canonical unit (word, byte, token), of which the text has so many."""
        return -self.log_likelihood / units

    def perplexity(self, units: int) -> float:
        """e to the nats per unit."""
        return math.exp(self.nats_per(units))

    def bits_per(self, units: int) -> float:
        """Bits per unit: of bytes it is bits per byte."""
        return self.nats_per(units) / math.log(2)


class Scores(Protocol):
    """Whoever can score: a `Scorer` here, or one behind a server."""

    context_length: int
    tokenizer: Tokenizer

    def continuations(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Scored]: ...

    def rolling(
        self,
        texts: Sequence[Ids],
        window: int = 0,
        stride: int = 0,
        first: First = "eot",
        progress: Progress | None = None,
    ) -> list[Rolled]: ...

    def greedy(
        self, prompts: Sequence[Ids], max_new_tokens: int | Sequence[int], stop: Sequence[str] = ()
    ) -> list[str]: ...


class Scorer:
    """Scores with a model, or with a (runner, tokenizer), whose pages it takes for itself."""

    def __init__(self, model: Model | tuple[Runner, Tokenizer], streams: int = 16) -> None:
        self.runner, self.tokenizer = model if isinstance(model, tuple) else (model.runner(streams), model.tokenizer)
        self.context_length = self.runner.config.context_length

    def continuations(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Scored]:
        """Each continuation after its context, in the order of the pairs.

        Of a pair that is too long the model reads the end, as lm-evaluation-harness does it: the context is cut on its
        left. Beginnings that pairs have in common are read once. UserError, with the pair's place, for an empty context
        (take end-of-text), an empty continuation, and one that passes the model's context.
        """
        readings = [self._reading(place, context, after) for place, (context, after) in enumerate(pairs)]
        found = read(self.runner, readings, progress)
        return [Scored(math.fsum(one.logprobs), all(one.likeliest), len(one.logprobs)) for one in found]

    def rolling(
        self,
        texts: Sequence[Ids],
        window: int = 0,
        stride: int = 0,
        first: First = "eot",
        progress: Progress | None = None,
    ) -> list[Rolled]:
        """Every token of each text once, each text for itself; see `windows` for how it is cut.

        `window` 0 is the model's context, `stride` 0 is the window (what lm-evaluation-harness does: nothing is read
        twice but by the last window). `first`: the first token is predicted after end-of-text, or not at all.
        """
        window = window or self.context_length
        stride = stride or window
        if not 0 < stride <= window <= self.context_length:
            raise UserError(
                f"window {window} and stride {stride}: they must be 1 <= stride <= window <= {self.context_length}, "
                "the model's context"
            )
        cut: list[Reading] = []
        counts: list[int] = []
        for text in texts:
            whole = [*end_of_text(self.tokenizer), *text] if first == "eot" else text
            parts = list(windows(whole, window, stride))
            cut += parts
            counts.append(len(parts))
        found = iter(read(self.runner, cut, progress, greedy=False))
        results = []
        for count in counts:
            logprobs = [value for _ in range(count) for value in next(found).logprobs]
            results.append(Rolled(math.fsum(logprobs), len(logprobs), window, stride, first))
        return results

    def greedy(
        self, prompts: Sequence[Ids], max_new_tokens: int | Sequence[int], stop: Sequence[str] = ()
    ) -> list[str]:
        """What the model writes after each prompt, always the likeliest token; see `write`.

        `max_new_tokens` is for all, or one number for each.
        """
        most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        return self.write(prompts, [SamplingParams(number, temperature=0.0, stop=tuple(stop)) for number in most])

    def write(self, prompts: Sequence[Ids], params: Sequence[SamplingParams]) -> list[str]:
        """What the model writes after each prompt with its settings, up to a stop string or end-of-text, without these.

        Of a prompt that leaves no room for `max_new_tokens` the model reads the end; an empty one is end-of-text.
        UserError where the new tokens alone fill the context.
        """
        from gpt2.inference.engine import Engine

        cut: list[Ids] = []
        for ids, settings in zip(prompts, params, strict=True):
            room = self.context_length - settings.max_new_tokens
            if room < 1:
                raise UserError(
                    f"max_new_tokens {settings.max_new_tokens}: the model's context has {self.context_length}, and a "
                    "prompt needs one; take fewer"
                )
            cut.append(list(ids[-room:]) or end_of_text(self.tokenizer))
        engine = Engine((self.runner, self.tokenizer))  # a new one: its pages held other texts meanwhile
        return [result.text for result in engine.generate(cut, params)]

    def _reading(self, place: int, context: Ids, after: Ids) -> Reading:
        """What is to be read of a pair."""
        if not context or not after:
            what = "continuation" if context else "context"
            raise UserError(f"pair {place}: its {what} has no tokens")
        if len(after) > self.context_length:
            raise UserError(
                f"pair {place}: a continuation of {len(after)} tokens, the model's context is {self.context_length}"
            )
        return Reading([*context, *after][-self.context_length - 1 : -1], after)


def windows(whole: Ids, window: int, stride: int) -> Iterator[Reading]:
    """A text cut so that each of its tokens but the first is predicted once, after up to `window` tokens.

    The first window predicts `window` tokens, each further one the next `stride` (the last what is left) at its end:
    each of those is predicted after at least window - stride + 1 tokens, and the last window is a full one too.
    """
    end = 0  # so many are predicted
    while end < len(whole) - 1:
        new = min(stride if end else window, len(whole) - 1 - end)
        end += new
        yield Reading(whole[max(0, end - window) : end], whole[end - new + 1 : end + 1])


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """A pair of texts as tokens, as lm-evaluation-harness makes them: encoded together, cut where the context ends.

    Spaces at the context's end go to the continuation; a context of nothing else is end-of-text.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole, before = tokenizer.encode(kept + continuation), tokenizer.encode(kept)
    return before or end_of_text(tokenizer), whole[len(before) :]


def end_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that stands before a text; UserError where a vocabulary has none."""
    if tokenizer.eot_id is None:
        raise UserError('this vocabulary has no end-of-text token to begin with; give a context, or first="none"')
    return [tokenizer.eot_id]
