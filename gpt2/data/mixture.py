"""Several texts in one stream of rows, each by its weight, in an order that nobody's number of processes changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gpt2.data.loader import Batch, Loader
from gpt2.data.shards import Split
from gpt2.errors import UserError

MOST_WEIGHT = 10**6


@dataclass(frozen=True)
class Part:
    """One text of a mixture, and its share of the rows beside the others' weights."""

    name: str
    split: Split
    weight: Fraction = Fraction(1)


def parse_part(text: str) -> tuple[str, Fraction]:
    """`data/web=0.6` -> the folder and its weight; UserError names what is wrong."""
    folder, equals, weight = text.rpartition("=")
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not folder or not equals or not 0.0 < value <= MOST_WEIGHT:
        raise UserError(f"mixture: '{text}': write FOLDER=WEIGHT, with a weight above 0, such as data/web=0.6")
    return folder, Fraction(value).limit_denominator(MOST_WEIGHT)


class Mixture:
    """Draws rows as a Loader does, from several of them: each part has its own order, epochs and place.

    Which part the next row comes from is decided without dice: every row gives each part its weight as credit, and
    the one with most credit pays for the row (smooth weighted round-robin, as in nginx). So the shares are exact over
    any stretch, give or take a row, and the whole cursor is the credits and the parts' cursors.
    """

    def __init__(
        self, parts: Sequence[Part], context_length: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.parts, self.context_length = list(parts), context_length
        self.rank, self.world_size = rank, world_size
        # Another order for each part: two of one length must not walk in step.
        self.loaders = [Loader(part.split, context_length, seed + place) for place, part in enumerate(parts)]
        scale = math.lcm(*(part.weight.denominator for part in parts))
        self._weights = [int(part.weight * scale) for part in parts]
        self._credit = [0] * len(self.parts)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets of one pass over every part."""
        return sum(loader.tokens_per_epoch for loader in self.loaders)

    def next_batch(self, rows: int) -> Batch:
        """This rank's `rows` of the next `rows * world_size`: inputs and targets, int64 (rows, context_length)."""
        picks = [self._pick() for _ in range(rows * self.world_size)]
        starts = [iter(loader.draw(picks.count(place))) for place, loader in enumerate(self.loaders)]
        drawn = [(place, next(starts[place])) for place in picks]
        mine = drawn[self.rank * rows : (self.rank + 1) * rows]
        windows = np.stack([self.loaders[place].window(start) for place, start in mine])
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def passes(self) -> dict[str, float]:
        """How often each part has been read so far."""
        return {part.name: loader.passes for part, loader in zip(self.parts, self.loaders, strict=True)}

    def state(self) -> dict[str, Any]:
        """The cursor, as plain numbers and texts."""
        return {
            "credit": list(self._credit),
            "weights": list(self._weights),
            "parts": [loader.state() for loader in self.loaders],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; UserError if that was another mixture."""
        if state.get("weights") != self._weights:
            raise UserError(
                f"mixture: the run to resume has weights {state.get('weights')}, now they are {self._weights}; "
                "resume with the same mixture"
            )
        self._credit = list(state["credit"])
        for loader, cursor in zip(self.loaders, state["parts"], strict=True):
            loader.load(cursor)

    def _pick(self) -> int:
        """The part that the next row comes from; the first of equals."""
        credit = self._credit
        for place, weight in enumerate(self._weights):
            credit[place] += weight
        chosen = max(range(len(credit)), key=credit.__getitem__)
        credit[chosen] -= sum(self._weights)
        return chosen


def expected_passes(parts: Sequence[Part], tokens: int) -> dict[str, float]:
    """How often each part is read in a run of so many tokens."""
    total = sum(part.weight for part in parts)
    return {part.name: float(part.weight / total) * tokens / len(part.split) for part in parts}
