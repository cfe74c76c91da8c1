"""Which text trains and which is held out: by document, near-identical ones together, or by position.

A document's side is decided by what it says, not by where it stands: a hash of seed and content, its *draw*, is
below a threshold for held-out documents. So the split is the same on every machine and in any order, and adding
documents moves none from one side to the other. A near-identical document takes the draw of the earlier one.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2.data.readers import Piece
from gpt2.errors import UserError

SplitName = Literal["train", "val"]

SKETCH = 32  # hashes kept of a document: the smallest of its shingles' (a bottom-k sketch)
SHINGLE_BYTES = 16
FEWEST_SHINGLES = 8  # with fewer a document is compared as a whole only
SAME_OF_SKETCH = 0.85  # shared part of two sketches from which documents count as one: Jaccard about 0.75
REMEMBERED = 1 << 16  # documents that a later one is compared with
EMPTY = 0xFFFFFFFF

_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
_SPACE = b" \t\n\r\v\f"


class Sketches(NamedTuple):
    """Of some documents: hash of the normalised text (8 bytes each), and sketch, uint32 (documents, SKETCH)."""

    digests: list[bytes]
    smallest: npt.NDArray[np.uint32]


def sketch(texts: Sequence[str], seed: int) -> Sketches:
    """Fingerprints of documents, case and white space aside.

    Shingles are the 16-byte windows that start at a byte of certain values (a sample of about a tenth, the same in
    whatever place the text stands). All documents are hashed in one sweep, as most are short.
    """
    normal = [text.encode("utf-8", "surrogatepass").translate(_LOWER, _SPACE) for text in texts]
    key = seed.to_bytes(16, "little", signed=True)
    digests = [hashlib.blake2b(text, digest_size=8, key=key).digest() for text in normal]
    gap = bytes(SHINGLE_BYTES)
    joined = gap.join([*normal, b""])
    ends = np.cumsum([len(text) + len(gap) for text in normal], dtype=np.int64)
    starts = np.flatnonzero((np.frombuffer(joined, np.uint8) & 15) == 3)
    document = np.searchsorted(ends, starts, side="right").astype(np.uint64)
    keys = np.unique(document << np.uint64(32) | _hash_windows(joined, starts))
    first = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
    column = np.arange(SKETCH)
    where = np.minimum(first[:-1, None] + column, max(0, len(keys) - 1))
    present = column < np.diff(first)[:, None]
    values = keys[where] & np.uint64(EMPTY) if len(keys) else np.full_like(where, EMPTY)
    return Sketches(digests, np.where(present, values, EMPTY).astype(np.uint32))


def _hash_windows(data: bytes, starts: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """32-bit hashes (as uint64) of the 16 bytes from each start."""
    words: npt.NDArray[np.uint64] = np.ndarray((max(0, len(data) - 7),), "<u8", data, strides=(1,))
    mixed = words[starts] * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed += words[starts + 8]
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return mixed >> np.uint64(32)


class Grouper:
    """Gives each document its draw: its own, or that of a near-identical one among the last REMEMBERED.

    Twins are looked up by the three smallest hashes of the sketch and confirmed by comparing sketches. The memory
    is a fixed 10 MB; documents with too few shingles are equal only when equal but for case and white space.
    """

    def __init__(self) -> None:
        self._newest = array("I", bytes(4 * 4 * REMEMBERED))  # hash -> row + 1 of the last sketch that has it
        self._sketches = array("I", bytes(4 * SKETCH * REMEMBERED))
        self._draws = array("Q", bytes(8 * REMEMBERED))
        self._count = 0

    def draw(self, digest: bytes, smallest: Sequence[int]) -> int:
        """A number from 0 to 2**64 - 1, shared by near-identical documents."""
        own = int.from_bytes(digest, "little")
        if smallest[FEWEST_SHINGLES - 1] == EMPTY:
            return own
        twin = next((row for key in smallest[:3] if (row := self._twin(key, smallest)) is not None), None)
        draw = own if twin is None else self._draws[twin]
        self._remember(smallest, draw)
        return draw

    def _twin(self, key: int, smallest: Sequence[int]) -> int | None:
        row = self._newest[key % len(self._newest)] - 1
        if row < 0:
            return None
        other = self._sketches[row * SKETCH : (row + 1) * SKETCH]
        if key not in other:
            return None
        ours, theirs = set(smallest) - {EMPTY}, set(other) - {EMPTY}
        return row if len(ours & theirs) >= SAME_OF_SKETCH * max(len(ours), len(theirs)) else None

    def _remember(self, smallest: Sequence[int], draw: int) -> None:
        row = self._count % REMEMBERED
        self._count += 1
        self._sketches[row * SKETCH : (row + 1) * SKETCH] = array("I", smallest)
        self._draws[row] = draw
        for key in smallest[:3]:
            self._newest[key % len(self._newest)] = row + 1


def threshold(val_fraction: float, lowest: int, highest: int) -> int:
    """Draws below it are held out: `val_fraction` of the documents, by chance, but one on each side at least.

    Raises UserError if all documents have the same draw.
    """
    if lowest == highest:
        raise UserError(
            "the documents are near-identical, so none can be held out by document; use --split position, or give "
            "other text too"
        )
    return min(max(int(val_fraction * 2.0**64), lowest + 1), highest)


class Part(NamedTuple):
    """Text of one side; `ends` where a document ends with it."""

    text: str
    split: SplitName
    ends: bool


def by_document(pieces: Iterable[Piece], draws: npt.NDArray[np.uint64], below: int) -> Iterator[Part]:
    """Send each document to the side that its draw says."""
    values: Iterator[Any] = iter(draws)
    split: SplitName = "train"
    for text, starts, ends in pieces:
        if starts:
            draw = next(values, None)
            if draw is None:
                raise UserError("the sources changed while they were read; run the same command again")
            split = "val" if int(draw) < below else "train"
        yield Part(text, split, ends)


def by_position(pieces: Iterable[Piece], boundary: int) -> Iterator[Part]:
    """The first `boundary` characters train, the rest is held out. A piece that lies across is cut in two."""
    left = boundary
    for text, _, ends in pieces:
        if 0 < left < len(text):
            yield Part(text[:left], "train", False)
            yield Part(text[left:], "val", ends)
        else:
            yield Part(text, "train" if left > 0 else "val", ends)
        left = max(0, left - len(text))
