"""Examples as the model reads them: token ids, and which of them are learned. Millions of them in a few arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """One example: prompt, completion and end-of-text, or a stretch of plain text.

    `ids` int32 (n,), n at least 2; `wanted` bool (n,): which of them are learned, never the first. The last id is only
    ever a target: the model reads `positions` = n - 1 tokens, and n is at most the context length + 1. `label` is the
    number of the text's label (ExampleSet.labels), else -1. A labelled text's last position is its last own token; what
    stands behind it is end-of-text, or, where the vocabulary has none, that token once more, which is not learned.
    """

    ids: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    label: int = -1

    @property
    def positions(self) -> int:
        """Tokens that the model reads: the room that the example takes in a row."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt; the better one is `chosen`."""

    chosen: Encoded
    rejected: Encoded

    @property
    def positions(self) -> int:
        """The room that both take, one behind the other."""
        return self.chosen.positions + self.rejected.positions


class Encodings(Sequence[Encoded]):
    """Many Encoded in flat arrays: example i is `ids[starts[i]:ends[i]]`; neighbours may overlap. Parts share arrays.

    `ids` uint16 or int32 (tokens,), `wanted` bool (tokens,), `starts` and `ends` int64 (n,), `labels` int32 (n,).
    """

    def __init__(
        self,
        ids: NDArray[np.uint16] | NDArray[np.int32],
        wanted: NDArray[np.bool_],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        labels: NDArray[np.int32],
    ) -> None:
        self.ids, self.wanted, self.starts, self.ends, self.labels = ids, wanted, starts, ends, labels

    @property
    def positions(self) -> NDArray[np.int64]:
        """The room of each, (n,): see Encoded.positions."""
        return self.ends - self.starts - 1

    def take(self, rows: NDArray[np.int64]) -> Encodings:
        """The examples of these numbers, in this order; no token is copied."""
        return Encodings(self.ids, self.wanted, self.starts[rows], self.ends[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: int) -> Encoded: ...
    @overload
    def __getitem__(self, row: slice) -> Encodings: ...
    def __getitem__(self, row: int | slice) -> Encoded | Encodings:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        start, end = self.starts[row], self.ends[row]
        wanted = self.wanted[start:end].copy()
        wanted[0] = False  # whatever it is where it stands: a text's next stretch begins with the last one's end
        return Encoded(self.ids[start:end].astype(np.int32), wanted, int(self.labels[row]))

    def __iter__(self) -> Iterator[Encoded]:
        return (self[row] for row in range(len(self)))


class Pairs(Sequence[Pair]):
    """Many Pairs: `chosen[i]` and `rejected[i]` belong together."""

    def __init__(self, chosen: Encodings, rejected: Encodings) -> None:
        self.chosen, self.rejected = chosen, rejected

    @property
    def positions(self) -> NDArray[np.int64]:
        """The room of each, (n,): see Pair.positions."""
        return self.chosen.positions + self.rejected.positions

    def take(self, rows: NDArray[np.int64]) -> Pairs:
        """The pairs of these numbers, in this order; no token is copied."""
        return Pairs(self.chosen.take(rows), self.rejected.take(rows))

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, row: int) -> Pair: ...
    @overload
    def __getitem__(self, row: slice) -> Pairs: ...
    def __getitem__(self, row: int | slice) -> Pair | Pairs:
        if isinstance(row, slice):
            return Pairs(self.chosen[row], self.rejected[row])
        return Pair(self.chosen[row], self.rejected[row])

    def __iter__(self) -> Iterator[Pair]:
        return (self[row] for row in range(len(self)))
