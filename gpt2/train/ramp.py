"""How many rows each step has, and so how many tokens came before it: always the same, or more and more.

GPT-3's batch grew "linearly from a small value (32k tokens) to the full value over the first 4-12 billion tokens of
training, depending on the model size" (Brown et al. 2020, appendix B).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True)
class Level:
    """Steps of so many rows, from `step` on; `tokens` were drawn before it."""

    step: int
    tokens: int
    rows: int


class Ramp:
    """Rows of every step of a run, over all ranks: `first_rows`, then its multiples, `full_rows` after `over_tokens`.

    Multiples, so that what deals the first step out evenly deals all of them; a run of 175B has a hundred levels.
    Tokens are those of whole rows of `row_tokens`, targets that do not count included.
    """

    def __init__(self, full_rows: int, row_tokens: int, first_rows: int = 0, over_tokens: int = 0) -> None:
        self.full_rows, self.row_tokens = full_rows, row_tokens
        self.levels = tuple(self._levels(first_rows or full_rows, over_tokens))

    def rows_at(self, step: int) -> int:
        """Rows of this step; the first is 0."""
        return self._level(step).rows

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before this one."""
        level = self._level(step)
        return level.tokens + (step - level.step) * level.rows * self.row_tokens

    def steps_for(self, tokens: int) -> int:
        """The fewest steps that have at least so many tokens."""
        level = self.levels[max(0, bisect.bisect_left(self.levels, tokens, key=attrgetter("tokens")) - 1)]
        return level.step + max(0, -(-(tokens - level.tokens) // (level.rows * self.row_tokens)))

    def nearest_step(self, tokens: float) -> int:
        """The step before which the number of tokens is nearest to this one."""
        above = self.steps_for(round(tokens))
        below = max(0, above - 1)
        return above if self.tokens_before(above) - tokens < tokens - self.tokens_before(below) else below

    def _level(self, step: int) -> Level:
        return self.levels[bisect.bisect_right(self.levels, step, key=attrgetter("step")) - 1]

    def _levels(self, first_rows: int, over_tokens: int) -> Iterator[Level]:
        step = tokens = 0
        for rows in range(first_rows, self.full_rows, first_rows):
            # The line from first_rows to full_rows passes the next level here.
            share = min(1.0, rows / (self.full_rows - first_rows))
            steps = -(-(round(over_tokens * share) - tokens) // (rows * self.row_tokens))
            if steps > 0:
                yield Level(step, tokens, rows)
                step, tokens = step + steps, tokens + steps * rows * self.row_tokens
        yield Level(step, tokens, self.full_rows)
