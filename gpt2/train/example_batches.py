"""Examples as the loop's batches: each step some examples, packed into rows that the model reads apart.

What a batch's `extra` holds, by kind of examples:

    text, completion   nothing
    label              "labels" and "ends", int64 (rows, S): each text's label and the place of its last token in the
                       row, -1 in both where a row holds fewer texts than S
    preference         "reference", float32 (rows,): by how many nats the reference prefers the chosen text. One pair a
                       row: the chosen one is segment 0, the rejected one segment 1; a row may be longer than the
                       context, as either text begins at position 0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.data.examples import Encoded, Encodings, Pair, Pairs
from gpt2.data.packing import fill_row, pack
from gpt2.data.permutation import Permutation
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.train.loop import Batch

LEAST_ROOM = 256  # tokens of a row, where the context has so many: several short examples share one
GRAIN = 16  # rows are cut to a multiple of this
TRIES = 16  # lengths of rows that are compared for a batch
VALIDATED_TOKENS = {"cpu": 4_096, "cuda": 16_384}  # read at a time: more gain nothing and take memory


@dataclass(frozen=True)
class Rows:
    """How examples of a set become rows.

    `room` is the longest row (tokens); rows of a batch are cut to the longest that is needed, in steps of `grain`.
    `reference` float32 (n,) goes with pairs: a row's number is its pair's.
    """

    examples: Encodings | Pairs
    room: int
    grain: int = GRAIN
    reference: NDArray[np.float32] | None = None

    def batch(self, numbers: NDArray[np.int64], seed: int, ranks: Ranks = ALONE) -> Batch:
        """Rows of these examples, as they fall to this rank: each rank gets as many, the last of them maybe empty."""
        lengths = self.examples.positions[numbers]
        rows, room = self.laid_out(lengths, seed, ranks.data_size)
        rows += [[] for _ in range(-len(rows) % ranks.data_size)]
        mine = [numbers[row] for row in rows[ranks.data_rank :: ranks.data_size]]
        texts = [[text for number in row for text in self.texts(number)] for row in mine]
        inputs, targets, segment_ids = (
            torch.from_numpy(np.stack(part)) for part in zip(*(fill_row(row, room) for row in texts), strict=True)
        )
        tokens = sum(text.positions for row in texts for text in row)
        return Batch(inputs, targets, segment_ids, self.extra(mine, texts), tokens)

    def laid_out(self, lengths: NDArray[np.int64], seed: int, ranks: int) -> tuple[list[list[int]], int]:
        """Which examples share a row, and how long rows are: as few tokens as any of these takes, padding too."""
        if self.paired:
            return [[place] for place in range(len(lengths))], self.cut(int(lengths.max()))
        found: tuple[list[list[int]], int] | None = None
        for room in self.rooms(int(lengths.max())):
            rows = pack(lengths, room, seed)
            room = self.cut(max(int(lengths[row].sum()) for row in rows))
            if found is None or padded(rows, room, ranks) < padded(*found, ranks):
                found = rows, room
        assert found is not None
        return found

    def rooms(self, longest: int) -> list[int]:
        """Lengths of rows to try: packing thousands of examples takes a while."""
        shortest = self.cut(longest)
        step = -(-max(1, (self.room - shortest) // TRIES) // self.grain) * self.grain
        return sorted({*range(shortest, self.room, step), self.room})

    def cut(self, longest: int) -> int:
        """How long rows are of which the longest has so many tokens."""
        return min(self.room, -(-longest // self.grain) * self.grain)

    @property
    def paired(self) -> bool:
        return isinstance(self.examples, Pairs)

    @cached_property
    def labelled(self) -> bool:
        """Of the whole set, not of a batch: every rank hands over the same names."""
        return isinstance(self.examples, Encodings) and bool((self.examples.labels >= 0).any())

    def texts(self, number: int) -> list[Encoded]:
        """The texts of an example, in the order of their segments."""
        example = self.examples[int(number)]
        return [example.chosen, example.rejected] if isinstance(example, Pair) else [example]

    def extra(self, numbers: Sequence[NDArray[np.int64]], texts: Sequence[Sequence[Encoded]]) -> dict[str, Tensor]:
        """What an objective needs beside the rows, see above."""
        if self.reference is not None:
            margins = [float(self.reference[row[0]]) if len(row) else 0.0 for row in numbers]
            return {"reference": torch.tensor(margins, dtype=torch.float32)}
        if not self.labelled:
            return {}
        slots = max([1, *map(len, texts)])  # a rank may have no text in this step
        ends = [np.cumsum([text.positions for text in row], dtype=np.int64) - 1 for row in texts]
        return {
            "labels": filled([np.array([text.label for text in row], np.int64) for row in texts], slots),
            "ends": filled(ends, slots),
        }


def padded(rows: Sequence[Sequence[int]], room: int, ranks: int) -> int:
    """Tokens that all ranks together go through, each as many rows."""
    return -(-len(rows) // ranks) * ranks * room


def filled(rows: Sequence[NDArray[np.int64]], slots: int) -> Tensor:
    """Rows of unequal length as (rows, slots), -1 behind their ends."""
    table = np.full((len(rows), slots), -1, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return torch.from_numpy(table)


def choose_room(examples: Encodings | Pairs, context_length: int) -> int:
    """Tokens of a row: the longest example's, but enough for several short ones."""
    longest = -(-int(examples.positions.max()) // GRAIN) * GRAIN
    if isinstance(examples, Pairs):
        return longest
    return min(context_length, max(longest, LEAST_ROOM))


class ExampleBatches:
    """`count` examples a step, pass after pass over all of them, each in an order of its own.

    Which examples a step has depends on the seed and its number alone: the cursor is that number.
    """

    def __init__(self, rows: Rows, count: int, seed: int, ranks: Ranks = ALONE, pin: bool = False) -> None:
        self.rows, self.count, self.seed, self.ranks, self.pin = rows, count, seed, ranks, pin
        self.done = 0  # steps

    def next(self, step: int) -> Batch:
        """The batch of this step (the first is 0)."""
        self.done = step + 1
        batch = self.rows.batch(self.numbers(step), self.seed + step, self.ranks)
        return pinned(batch) if self.pin else batch

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Which examples the step has; the last of one pass may come with the first of the next."""
        size = len(self.rows.examples)
        places = np.arange(step * self.count, (step + 1) * self.count)
        passes = places // size
        return np.concatenate(
            [Permutation(size, self.seed, int(number))(places[passes == number] % size) for number in np.unique(passes)]
        )

    def state(self) -> dict[str, Any]:
        return {"steps": self.done}

    def load(self, state: Mapping[str, Any]) -> None:
        self.done = state["steps"]

    def epochs(self) -> dict[str, float]:
        """Passes over the examples."""
        return {"examples": round(self.done * self.count / len(self.rows.examples), 4)}


def pinned(batch: Batch) -> Batch:
    """The same in memory from which a GPU takes it without anybody waiting."""
    assert batch.segment_ids is not None
    extra = {name: tensor.pin_memory() for name, tensor in batch.extra.items()}
    inputs, targets, segment_ids = (t.pin_memory() for t in (batch.inputs, batch.targets, batch.segment_ids))
    return Batch(inputs, targets, segment_ids, extra, batch.tokens)


def validation_batches(rows: Rows, most: int, device: str, ranks: Ranks = ALONE) -> Iterator[Batch]:
    """`most` of the examples, the same each time, as many at a time as have about VALIDATED_TOKENS tokens.

    Drawn, not the first ones: files are often sorted by label or source.
    """
    count = len(rows.examples)
    drawn = np.sort(Permutation(count, "validation")(np.arange(min(most, count))))
    lengths = rows.examples.positions[drawn]
    goal = VALIDATED_TOKENS["cpu" if device == "cpu" else "cuda"] * ranks.data_size
    groups = np.cumsum(lengths) // goal
    for group in np.unique(groups):
        yield rows.batch(drawn[groups == group], 0, ranks)
