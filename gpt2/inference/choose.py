"""From logits to the next token without torch: what `sampling.choose` does, row by row, as fast as the memory is read.

The kernels of gpt2.kernels.choose do the work where numba is there, numpy where it is not or where a row asks for more
than they have room for. Probabilities that torch, numpy and the kernels compute differ in the last bits of float32: a
random number that falls between two such sums gives another token; about one draw in a million does.

    R rows of logits  N asks  V vocabulary
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpt2.errors import UserError
from gpt2.inference.sampling import NOT_A_NUMBER, Choice, SamplingParams
from gpt2.runtime import check_jit, say

Floats = np.ndarray[Any, np.dtype[np.float32]]
Survey = tuple[
    Any, Any, Any
]  # of R rows: maxima of blocks (R, V / 64), of all (R,), log of the sum of exponentials (R,)
BROKEN, UNFINISHED = -1, -2  # as the kernels say it: the logits are not numbers; not found yet


@dataclass(frozen=True)
class Ask:
    """Which token follows: the row of logits, the tokens so far (for penalties), how to choose, and what draws."""

    row: int
    prompt: Sequence[int]
    output: Sequence[int]
    params: SamplingParams
    stream: random.Random


def choose_rows(logits: Floats, asks: Sequence[Ask], vocab_size: int, survey: Survey | None = None) -> list[Choice]:
    """A token for each ask, from the first `vocab_size` of each row of logits (R, at least V) float32.

    The same as `sampling.choose` with the same streams: a row that is not greedy draws one number from its stream, in
    the order of the asks. `survey` saves a look at all logits to who has had one. Raises UserError for logits that are
    not numbers.
    """
    if not asks:
        return []
    work = _Work(np.ascontiguousarray(logits, np.float32), asks, vocab_size, survey)
    work.choose()
    return work.choices()


class _Work:
    """The asks as arrays that kernels fill without the interpreter."""

    def __init__(self, logits: Floats, asks: Sequence[Ask], vocab_size: int, survey: Survey | None) -> None:
        self.logits, self.asks, self.vocab_size, self.survey = logits, asks, vocab_size, survey
        changed = [penalised(logits[ask.row, :vocab_size], ask) if has_penalty(ask.params) else None for ask in asks]
        places = np.cumsum([row is not None for row in changed]) - 1
        self.changed = np.stack([row for row in changed if row is not None] or [logits[0, :0]])
        self.where = np.array([
            (ask.row, -1 if row is None else place) for ask, row, place in zip(asks, changed, places, strict=True)
        ])  # fmt: skip
        self.settings = np.array([_setting(ask) for ask in asks])
        self.tokens = np.empty(len(asks), np.int64)
        self.normalisers = np.empty(len(asks))

    def choose(self) -> None:
        """Fill tokens and normalisers."""
        kernels = load_kernels()
        if kernels is None:
            for place in range(len(self.asks)):
                self.tokens[place], self.normalisers[place] = self._plainly(place)
            return
        survey = self.survey or self._look()
        self.normalisers = survey[2][self.where[:, 0]]
        kernels.rows(self.logits, survey, self.changed, self.vocab_size, self.where, self.settings, self.tokens)

    def _look(self) -> Survey:
        from gpt2.kernels.survey import BLOCK, survey_rows

        rows = len(self.logits)
        found = np.empty((rows, -(-self.vocab_size // BLOCK)), np.float32), np.empty(rows, np.float32), np.empty(rows)
        survey_rows(self.logits, self.vocab_size, *found)
        return found

    def choices(self) -> list[Choice]:
        """What was chosen; the rows that the kernels left are finished first."""
        tokens = self.tokens.tolist()
        for place, token in enumerate(tokens):
            if token == UNFINISHED:
                tokens[place], _ = self._plainly(place)
            if tokens[place] == BROKEN:
                raise UserError(NOT_A_NUMBER)
        own = self.logits[self.where[:, 0], tokens] - self.normalisers
        tops = [self._top(place) if ask.params.logprobs else () for place, ask in enumerate(self.asks)]
        return [Choice(token, value, top) for token, value, top in zip(tokens, own.tolist(), tops, strict=True)]

    def _plainly(self, place: int) -> tuple[int, float]:
        row = self.logits[self.where[place, 0], : self.vocab_size]
        normaliser = log_sum_exp(row)
        if not np.isfinite(normaliser):
            return BROKEN, normaliser
        if self.where[place, 1] >= 0:
            row = self.changed[self.where[place, 1]]
        return choose_plainly(row, self.asks[place].params, self.settings[place, 4]), normaliser

    def _top(self, place: int) -> tuple[tuple[int, float], ...]:
        row = self.logits[self.where[place, 0], : self.vocab_size]
        tokens = likeliest(row, min(self.asks[place].params.logprobs or 0, self.vocab_size))
        return tuple(zip(tokens.tolist(), (row[tokens] - self.normalisers[place]).tolist(), strict=True))


def _setting(ask: Ask) -> tuple[float, float, float, float, float]:
    """Temperature (0: greedy), top_k, top_p, min_p, and the ask's random number."""
    params = ask.params
    if params.greedy:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    return params.temperature, params.top_k, params.top_p, params.min_p, ask.stream.random()


def has_penalty(params: SamplingParams) -> bool:
    """Whether tokens that were there before count for less."""
    return params.repetition_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)


def penalised(row: Floats, ask: Ask) -> Floats:
    """A copy of row (V,) after the penalties; see `sampling.penalise`."""
    row, params = row.copy(), ask.params
    if params.repetition_penalty != 1:
        index = np.array(sorted({*ask.prompt, *ask.output}), dtype=np.int64)
        seen, penalty = row[index], np.float32(params.repetition_penalty)
        row[index] = np.where(seen < 0, seen * penalty, seen / penalty)
    if params.presence_penalty or params.frequency_penalty:
        for token, count in Counter(ask.output).items():
            row[token] -= np.float32(params.presence_penalty + params.frequency_penalty * count)
    return row


def log_sum_exp(row: Floats) -> float:
    """The logarithm of the sum of exponentials of row (V,); not finite for logits that are not numbers."""
    with np.errstate(invalid="ignore"):
        top = row.max()
        return float(np.log(np.exp(row - top).sum(dtype=np.float64)) + top)


def likeliest(row: Floats, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The `count` likeliest tokens of row (V,), best first, ties in the vocabulary's order."""
    kernels = load_kernels()
    tokens = np.empty(count, np.int64)
    if kernels is not None and kernels.likeliest(row, count, tokens):
        return tokens
    return np.argsort(-row, kind="stable")[:count]


def choose_plainly(row: Floats, params: SamplingParams, number: float) -> int:
    """One token from row (V,), its penalties done, by sorting all of it: the way without kernels.

    `number` is from [0, 1). See `sampling.restrict` and `sampling.draw`.
    """
    if params.greedy:
        return int(row.argmax())
    scaled = row / np.float32(params.temperature)
    if 0 < params.top_k < len(row):
        scaled[scaled < np.partition(scaled, -params.top_k)[-params.top_k]] = -np.inf
    if params.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        shares = _softmax(scaled[order])
        before = shares.cumsum(dtype=np.float64).astype(np.float32) - shares
        scaled[order[before >= np.float32(params.top_p)]] = -np.inf
    shares = _softmax(scaled)
    if params.min_p:
        shares[shares < np.float32(params.min_p) * shares.max()] = 0
    cumulative = shares.cumsum(dtype=np.float64)
    return int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))


def _softmax(scaled: Floats) -> Floats:
    weights = np.exp(scaled - scaled.max())
    shares: Floats = weights / weights.sum(dtype=np.float64).astype(np.float32)
    return shares


@functools.cache
def load_kernels() -> ModuleType | None:
    """The compiled form, or None where numba cannot be used; says so once."""
    try:
        check_jit()
        from gpt2.kernels import choose
    except Exception as error:  # a numba that does not fit numpy fails in many ways
        say(f"numba cannot be used ({type(error).__name__}: {error}); tokens are chosen without it, more slowly")
        return None
    return choose
