"""Records to tokens, in batches and threads; what is too long for the context is cut, left out or refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2.data.parallel import Workers
from gpt2.data.records import Record

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

BATCH_CHARS, BATCH_RECORDS = 1 << 20, 1 << 12  # what a thread works on at a time
Numbers = NDArray[np.int64]


class Tokens(NamedTuple):
    """Examples in flat arrays, a preference's two sides one behind the other.

    `ids` (tokens,), `learned` bool (tokens,), `starts` and `ends` (sides,): where in them each side lies; of each
    record `lines` (line in the file), `keys` (hash of what a split must not part) and `labels` (texts).
    """

    ids: NDArray[np.uint16] | NDArray[np.int32]
    learned: NDArray[np.bool_]
    starts: Numbers
    ends: Numbers
    lines: Numbers
    keys: NDArray[np.uint64]
    labels: NDArray[np.object_]

    @property
    def sides(self) -> int:
        """Of a record: a preference has two."""
        return len(self.starts) // max(1, len(self.lines))

    def take(self, records: Numbers) -> Tokens:
        """These records, in this order; no token is copied."""
        rows = (records[:, None] * self.sides + np.arange(self.sides)).ravel()
        of_sides = {"starts": self.starts[rows], "ends": self.ends[rows]}
        lines, keys, labels = self.lines[records], self.keys[records], self.labels[records]
        return self._replace(**of_sides, lines=lines, keys=keys, labels=labels)

    def longest(self) -> Numbers:
        """Ids of each record's longer side, (records,)."""
        return (self.ends - self.starts).reshape(-1, max(1, self.sides)).max(axis=1, initial=0)


def encode_records(records: Iterable[Record], tokenizer: Tokenizer) -> Tokens:
    """All records' tokens. Threads encode while the next records are read."""
    with Workers(min(4, os.cpu_count() or 1)) as workers:
        done = list(workers.map(partial(_encode, tokenizer=tokenizer), _batches(records)))
    offsets = np.cumsum([0, *(len(batch.ids) for batch in done)])
    columns = [list(column) for column in zip(*done, strict=True)]
    done.clear()  # so that no more than one column is there twice
    for places in columns[2:4]:
        places[:] = [place + offset for place, offset in zip(places, offsets, strict=False)]
    return Tokens(*(np.concatenate(columns.pop(0)) for _ in Tokens._fields))


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    chars = 0
    for record in records:
        batch.append(record)
        chars += len(record.key)  # of a completion only the prompt, hence the second bound
        if chars >= BATCH_CHARS or len(batch) == BATCH_RECORDS:
            yield batch
            batch, chars = [], 0
    yield batch  # an empty one too: the arrays have their types from it


def _encode(records: list[Record], tokenizer: Tokenizer) -> Tokens:
    sides = [side for record in records for side in record.sides]
    pieces = [piece for side in sides for piece in side]
    found = iter(tokenizer.encode_arrays([piece for piece, _ in pieces if isinstance(piece, str)]))
    special = {id: np.array([id], np.uint32) for id in {piece for piece, _ in pieces} if isinstance(id, int)}
    arrays = [special[piece] if isinstance(piece, int) else next(found) for piece, _ in pieces]
    lengths = np.array([len(array) for array in arrays], np.int64)
    borders = np.append(0, np.cumsum(lengths))[np.cumsum([0, *map(len, sides)])]  # between sides, in tokens
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    return Tokens(
        np.concatenate([np.empty(0, np.uint32), *arrays]).astype(dtype),
        np.repeat(np.array([learned for _, learned in pieces], bool), lengths),
        borders[:-1],
        borders[1:],
        np.array([record.line for record in records], np.int64),
        np.array([_key(record.key) for record in records], np.uint64),
        np.array([record.label for record in records], object),
    )


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def windows(texts: Tokens, room: int) -> Tokens:
    """Each text as examples of at most `room` ids, which together learn every token of it once.

    The last id of one, only a target there, is the first of the next, which goes on from it.
    """
    counts = np.maximum(1, -(-(texts.ends - texts.starts - 1) // (room - 1)))
    text = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = texts.starts[text] + number * (room - 1)
    return texts.take(text)._replace(starts=starts, ends=np.minimum(starts + room, texts.ends[text]))


def cut(tokens: Tokens, room: int) -> Tokens:
    """The same records, no side over `room` ids.

    What goes is the beginning, as in a window that slides, but at least one id in front of the last answer stays; what
    is then too long loses its end. Both sides of a preference lose as much of their prompt. A text that is all learned,
    as a labelled one is, keeps its beginning.
    """
    starts, ends = tokens.starts.copy(), tokens.ends.copy()
    longest = tokens.longest()
    for record in np.flatnonzero(longest > room).tolist():
        rows = slice(record * tokens.sides, (record + 1) * tokens.sides)
        before = [_before_answer(tokens.learned[a:b]) for a, b in zip(starts[rows], ends[rows], strict=True)]
        starts[rows] += max(0, min(int(longest[record]) - room, min(before) - 1))
        ends[rows] = np.minimum(ends[rows], starts[rows] + room)
    return tokens._replace(starts=starts, ends=ends)


def _before_answer(learned: NDArray[np.bool_]) -> int:
    """Tokens in front of the last stretch that is learned; 0 where everything is."""
    begins = np.flatnonzero(learned[1:] & ~learned[:-1])
    return int(begins[-1]) + 1 if len(begins) else 0
