"""From logits to the next token: penalties, filters, and a draw that is each row's own.

The settings and their checks import no torch. Every filter takes logits (B, V), sets what it takes out to -inf, and
means what the LogitsProcessor of that name in transformers means; the presence and frequency penalties are OpenAI's.

    B rows  V vocabulary
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from gpt2.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

GREEDY_BELOW = 1e-6  # temperatures below this would divide logits into infinities: they mean the limit, greedy
NOT_A_NUMBER = (
    "the model's output is not a number: its weights are damaged, or the dtype too short; try --dtype float32"
)

# field -> (kind of number, what is allowed, the same in words)
_LIMITS: dict[str, tuple[type[Any], Callable[[Any], bool], str]] = {
    "max_new_tokens": (Integral, lambda x: x >= 1, "a whole number of at least 1"),
    "temperature": (Real, lambda x: 0 <= x < math.inf, "a number of at least 0 (0 always takes the likeliest token)"),
    "top_k": (Integral, lambda x: x >= 0, "a whole number of at least 0 (0 is off)"),
    "top_p": (Real, lambda x: 0 < x <= 1, "above 0 and at most 1 (1 is off)"),
    "min_p": (Real, lambda x: 0 <= x <= 1, "between 0 and 1 (0 is off)"),
    "repetition_penalty": (Real, lambda x: 0 < x < math.inf, "above 0 (1 is off)"),
    "presence_penalty": (Real, math.isfinite, "a number (0 is off)"),
    "frequency_penalty": (Real, math.isfinite, "a number (0 is off)"),
    "n": (Integral, lambda x: x >= 1, "a whole number of at least 1"),
    "logprobs": (Integral, lambda x: x >= 0, "a whole number of at least 0"),
    "seed": (Integral, lambda x: True, "a whole number"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How a text goes on. The defaults write well with base models; UserError names a value that cannot be.

    `stop`: strings that end the text and are not part of it. `n` samples per prompt. `logprobs`: so many likeliest
    alternatives with each token (None: none; the token's own log-probability is always given). `seed` None: a new
    text each time. Penalties come first, then temperature, top_k, top_p, min_p.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eot: bool = False
    n: int = 1
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, allowed, meaning) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name in ("logprobs", "seed"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not allowed(value):
                raise UserError(f"{name} = {value!r}: must be {meaning}")
        if not isinstance(self.ignore_eot, bool):
            raise UserError(f"ignore_eot = {self.ignore_eot!r}: must be true or false")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"stop = {stop!r}: must be strings that are not empty")
        object.__setattr__(self, "stop", stop)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    def random_stream(self, sample: int) -> random.Random:
        """The numbers that a prompt's `sample`-th text draws with: of the seed and that index alone.

        So a text does not depend on what else is in the batch. Python's generator, as it gives the same numbers on
        every device and to engines without torch.
        """
        return random.Random(None if self.seed is None else f"{self.seed}/{sample}")


@dataclass(frozen=True)
class Choice:
    """A chosen token, its log-probability (nats, by the model itself: before penalties and filters), the likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: Tensor,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    params: SamplingParams,
    streams: Sequence[random.Random],
) -> list[Choice]:
    """One token for each row of logits (B, V), given its prompt, what it wrote so far and its random stream."""
    import torch

    logprobs = logits.log_softmax(-1)
    if bool(logprobs[:, 0].isnan().any()):
        raise UserError(NOT_A_NUMBER)
    logits = penalise(logits, prompts, outputs, params)
    tokens = logits.argmax(-1).tolist() if params.greedy else draw(restrict(logits, params), streams)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    tops = _likeliest(logprobs, params.logprobs or 0)
    return [Choice(token, value, top) for token, value, top in zip(tokens, own, tops, strict=True)]


def penalise(
    logits: Tensor, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], params: SamplingParams
) -> Tensor:
    """Make tokens less likely that were there before, row by row.

    repetition_penalty (CTRL, Keskar et al. 2019, section 4.1): the logits of all tokens of prompt and output are
    divided by it where positive, multiplied where negative. presence and frequency (OpenAI's API reference): of the
    output's tokens only, subtract presence once and frequency times the number of occurrences.
    """
    if params.repetition_penalty != 1:
        logits = logits.clone()
        for row, prompt, output in zip(logits, prompts, outputs, strict=True):
            _repetition(row, {*prompt, *output}, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        logits = logits.clone()
        for row, output in zip(logits, outputs, strict=True):
            for token, count in Counter(output).items():
                row[token] -= params.presence_penalty + params.frequency_penalty * count
    return logits


def restrict(logits: Tensor, params: SamplingParams) -> Tensor:
    """Temperature, top-k, top-p and min-p, in this order; logits (B, V) -> logits (B, V)."""
    logits = logits / params.temperature
    if params.top_k:
        logits = top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = top_p(logits, params.top_p)
    if params.min_p:
        logits = min_p(logits, params.min_p)
    return logits


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens (Fan et al. 2018), and those equal to the k-th."""
    if k >= logits.size(-1):
        return logits
    least = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens that together reach probability p (nucleus, Holtzman et al. 2019).

    Of equal ones the vocabulary's first are kept, on every device.
    """
    ordered, index = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    drop = (before >= p).scatter(-1, index, before >= p)
    return logits.masked_fill(drop, -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


def draw(logits: Tensor, streams: Sequence[random.Random]) -> list[int]:
    """Sample by the inverse of the cumulative distribution: one random number a row, drawn outside the device."""
    import torch

    shares = logits.softmax(-1)
    if shares.device.type == "mps":  # which has no float64
        shares = shares.cpu()
    cumulative = shares.double().cumsum(-1)
    numbers = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=shares.device)
    chosen = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
    tokens: list[int] = chosen.squeeze(1).tolist()
    return tokens


def _repetition(row: Tensor, tokens: set[int], penalty: float) -> None:
    import torch

    index = torch.tensor(sorted(tokens), device=row.device)
    seen = row[index]
    row[index] = torch.where(seen < 0, seen * penalty, seen / penalty)


def _likeliest(logprobs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(logprobs)
    values, tokens = logprobs.topk(min(count, logprobs.size(-1)))
    return [tuple(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]
