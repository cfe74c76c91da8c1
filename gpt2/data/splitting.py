"""Which text trains and which is held out: by document, near-identical ones together, or by position.

A document's side is decided by what it says, not by where it stands: a hash of seed and content, its *draw*, is
below a threshold for held-out documents. So the split is the same on every machine and in any order, and adding
documents moves none from one side to the other. A near-identical document takes the draw of the earlier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2.data.readers import Piece
from gpt2.errors import UserError

SplitName = Literal["train", "val"]

SKETCH = 32  # hashes kept of a document: the smallest of its shingles' (a bottom-k sketch)
SHINGLE_BYTES = 16
FEWEST_SHINGLES = 8  # with fewer a document is compared as a whole only
SAME_OF_SKETCH = 0.85  # shared part of two sketches from which documents count as one: Jaccard about 0.75
LOOKUPS = 3  # hashes by which a twin is looked for
REMEMBERED = 1 << 16  # documents that a later one is compared with
EMPTY = 0xFFFFFFFF

_SPACE = b"\t\n\r\v\f"
_NORMAL = bytes(32 if byte in _SPACE else byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))


class Sketches(NamedTuple):
    """Of some documents: hash of seed and normalised text (64 bits), and sketch, uint32 (documents, SKETCH)."""

    digests: list[int]
    smallest: npt.NDArray[np.uint32]


def sketch(texts: Sequence[str], seed: int) -> Sketches:
    """Fingerprints of documents, in which case, and which kind of white space there is, makes no difference.

    Shingles are the 16-byte windows that start with certain pairs of bytes: about every fiftieth of English text,
    the same ones wherever the text stands. All documents are hashed in one sweep, as most are short.
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(text) + SHINGLE_BYTES for text in encoded], dtype=np.int64)
    joined = bytes(SHINGLE_BYTES).join([*encoded, b""]).translate(_NORMAL)
    data = np.frombuffer(joined, np.uint8)
    starts = np.flatnonzero(((data[:-1] & 15) == 3) & ((data[1:] & 3) == 1))
    shingles = np.diff(np.searchsorted(starts, ends), prepend=0)
    document = np.repeat(np.arange(len(texts), dtype=np.uint64), shingles)
    keys = np.sort(document << np.uint64(32) | _hash_windows(joined, starts))
    keys = keys[np.diff(keys, prepend=np.uint64(EMPTY) << np.uint64(32)) != 0]
    return Sketches(_digests(joined, ends.tolist(), seed), _smallest(keys, len(texts)))


def _digests(joined: bytes, ends: list[int], seed: int) -> list[int]:
    keyed = hashlib.sha1(seed.to_bytes(16, "little", signed=True), usedforsecurity=False)
    digests = []
    view = memoryview(joined)
    for start, end in zip([0, *ends], ends, strict=False):
        digest = keyed.copy()
        digest.update(view[start:end])
        digests.append(int.from_bytes(digest.digest()[:8], "little"))
    return digests


def _smallest(keys: npt.NDArray[np.uint64], documents: int) -> npt.NDArray[np.uint32]:
    """The first SKETCH hashes of each document, from sorted (document, hash) keys; EMPTY where there are fewer."""
    first = np.searchsorted(keys, np.arange(documents + 1, dtype=np.uint64) << np.uint64(32))
    column = np.arange(SKETCH)
    padded = np.append(keys, np.full(SKETCH, EMPTY, np.uint64))
    values = padded[first[:-1, None] + column].astype(np.uint32)  # the hash is the lower half
    return np.where(column < np.diff(first)[:, None], values, np.uint32(EMPTY))


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

    Twins are looked up by the three smallest hashes of the sketch, in what was seen before and in the same batch, and
    confirmed by comparing sketches. The memory is a fixed 11 MB; documents with too few shingles are alike only when
    their normalised texts are equal.
    """

    def __init__(self) -> None:
        self._sketches = np.full((REMEMBERED, SKETCH), EMPTY, np.uint32)
        self._draws = np.zeros(REMEMBERED, np.uint64)
        self._rows = np.zeros(4 * REMEMBERED, np.uint32)  # by hash: the row of the newest sketch that has it
        self._next = 0

    def draws(self, sketches: Sketches) -> npt.NDArray[np.uint64]:
        """Numbers from 0 to 2**64 - 1, one for each document in order, shared by near-identical ones."""
        draws = np.array(sketches.digests, np.uint64)
        long = np.flatnonzero(sketches.smallest[:, FEWEST_SHINGLES - 1] != EMPTY)
        found = sketches.smallest[long]
        draws[long] = self._twins_draws(draws[long], found)
        self._remember(draws[long][-REMEMBERED:], found[-REMEMBERED:])
        return draws

    def _twins_draws(self, draws: npt.NDArray[np.uint64], found: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
        for column in range(LOOKUPS):
            rows = self._rows[found[:, column] % len(self._rows)]
            same = alike(found, self._sketches[rows])
            draws[same] = self._draws[rows[same]]
        for column in range(LOOKUPS):
            _, first, group = np.unique(found[:, column], return_index=True, return_inverse=True)
            earlier = first[group]
            later = np.flatnonzero(earlier < np.arange(len(found)))
            for document in later[alike(found[later], found[earlier[later]])].tolist():
                draws[document] = draws[earlier[document]]
        return draws

    def _remember(self, draws: npt.NDArray[np.uint64], found: npt.NDArray[np.uint32]) -> None:
        rows = (self._next + np.arange(len(found))) % REMEMBERED
        self._next += len(found)
        self._sketches[rows], self._draws[rows] = found, draws
        for column in range(LOOKUPS):
            self._rows[found[:, column] % len(self._rows)] = rows


def alike(ours: npt.NDArray[np.uint32], theirs: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Whether sketches, uint32 (documents, SKETCH), are of near-identical documents, pair by pair."""
    both = np.sort(np.concatenate([ours, theirs], axis=1), axis=1)  # no hash is twice in one sketch
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != EMPTY)).sum(axis=1)
    longer = np.maximum((ours != EMPTY).sum(axis=1), (theirs != EMPTY).sum(axis=1))
    return shared >= SAME_OF_SKETCH * longer


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


def by_document(pieces: Iterable[Piece], draws: Iterable[int], below: int) -> Iterator[Part]:
    """Send each document to the side that its draw says."""
    values = iter(draws)
    split: SplitName = "train"
    for text, starts, ends in pieces:
        if starts:
            draw = next(values, None)
            if draw is None:
                raise UserError("the sources changed while they were read; run the same command again")
            split = "val" if draw < below else "train"
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
