"""How much of a test set the training set holds: GPT-2's way (section 4, Table 6) and GPT-3's (appendix C).

GPT-2: the share of the test set's 8-grams of words that a Bloom filter of the training set's 8-grams has, words being
lower-case and alphanumeric. The filter never misses one that is there; at most one in 10^8 that is not there is found.

GPT-3: an example is dirty if any of its N-grams is in the training set, N being the 5th percentile of the examples'
lengths in words, at least 8 and at most 13; one that is shorter than N, if the whole of it is there. Here the test
set's N-grams are kept by 64-bit hashes and the training set is read past them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.data.readers import Corpus, Piece
from gpt2.errors import UserError
from gpt2.evaluate.rows import jsonl, kept_lines, open_text

Hashes = npt.NDArray[np.uint64]

WORD = re.compile(r"[^\W_]+")
GPT2_N = 8
GPT3_N = (8, 13)  # least and most
PERCENTILE = 5
FALSE_POSITIVES = 1e-8
BATCH = 1 << 20
ODD = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64, as the two below
MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def words_of(text: str) -> list[str]:
    """Lower-case, alphanumeric."""
    return WORD.findall(text.lower())


class Hasher:
    """Hashes of words and of n-grams, the same in every run."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def words(self, words: Sequence[str]) -> Hashes:
        return np.fromiter(map(self._word, words), np.uint64, len(words))

    def _word(self, word: str) -> int:
        found = self._known.get(word)
        if found is None:
            if len(self._known) > 1_000_000:  # rare words are many: the memory is bounded
                self._known.clear()
            found = int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")
            self._known[word] = found
        return found


def ngrams(words: Hashes, n: int) -> Hashes:
    """(len(words) - n + 1): a hash of each n words in a row; none of fewer than n words."""
    count = max(0, len(words) - n + 1)
    found = np.zeros(count, np.uint64)
    for place in range(n):
        found = mix(found + words[place : place + count])
    return found


def mix(values: Hashes) -> Hashes:
    """splitmix64: neighbours become strangers."""
    values = values + ODD
    values = (values ^ (values >> np.uint64(30))) * MIXERS[0]
    values = (values ^ (values >> np.uint64(27))) * MIXERS[1]
    return values ^ (values >> np.uint64(31))


class BloomFilter:
    """A set of hashes that may take a stranger for a member, with a known chance, and never a member for a stranger."""

    def __init__(self, capacity: int, false_positives: float = FALSE_POSITIVES) -> None:
        per_item = -math.log(false_positives) / math.log(2) ** 2
        self.size = max(64, math.ceil(capacity * per_item))
        self.probes = max(1, round(per_item * math.log(2)))
        self.bits = np.zeros(-(-self.size // 8), np.uint8)

    def add(self, hashes: Hashes) -> None:
        for places in self._places(hashes):
            np.bitwise_or.at(self.bits, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8))

    def has(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        found = np.ones(len(hashes), bool)
        for places in self._places(hashes):
            found &= (self.bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8)) & 1 == 1
        return found

    def _places(self, hashes: Hashes) -> Iterator[Hashes]:
        """Double hashing (Kirsch and Mitzenmacher 2006)."""
        step = mix(hashes) | np.uint64(1)
        for probe in range(self.probes):
            yield (hashes + np.uint64(probe) * step) % np.uint64(self.size)


@dataclass
class TestSet:
    """A test set's examples as hashes of words, and which of them were found."""

    __test__ = False  # no test of pytest's

    name: str
    examples: list[Hashes]
    n: int = field(init=False)
    dirty: set[int] = field(default_factory=set[int], init=False)

    def __post_init__(self) -> None:
        self.n = gpt3_n([len(example) for example in self.examples])
        grams = [ngrams(example, min(self.n, len(example))) for example in self.examples]
        owners = [np.full(len(part), place) for place, part in enumerate(grams)]
        self.lengths = sorted({min(self.n, len(example)) for example in self.examples})
        order = np.argsort(all_grams := np.concatenate(grams))
        self._grams, self._owners = all_grams[order], np.concatenate(owners)[order]

    def look_at(self, words: Hashes) -> None:
        """Note the examples of which an N-gram is among those of a piece of training text."""
        for length in self.lengths:
            found = np.isin(self._grams, ngrams(words, length))
            self.dirty.update(self._owners[found].tolist())


def gpt3_n(lengths: Sequence[int]) -> int:
    """N, by the examples' lengths in words."""
    return int(np.clip(np.percentile(lengths, PERCENTILE), *GPT3_N))


@dataclass(frozen=True)
class Overlap:
    """What was found of one test set."""

    name: str
    examples: int
    eight_grams: int  # of the test set, each occurrence counted
    eight_grams_found: int
    n: int
    dirty: tuple[int, ...]  # places of the examples

    def as_dict(self) -> dict[str, Any]:
        return {
            "test": self.name,
            "examples": self.examples,
            "8-grams": self.eight_grams,
            "8-grams in training": self.eight_grams_found,
            "8-gram overlap %": 100 * self.eight_grams_found / max(1, self.eight_grams),
            "N": self.n,
            "dirty examples": len(self.dirty),
            "dirty %": 100 * len(self.dirty) / self.examples,
        }


def measure(train: Corpus, tests: Sequence[TestSet], progress: Callable[[int], None] | None = None) -> list[Overlap]:
    """Read the training set twice: to count its words, which gives the filter's size, and to fill it."""
    counts = [len(words_of(piece.text)) for piece in train.pieces()]
    if not any(counts):
        raise UserError("the training set has no words")
    seen, hasher = BloomFilter(sum(counts) + len(counts)), Hasher()
    for words in batches(train.pieces(), hasher):
        seen.add(ngrams(words, GPT2_N))
        for test in tests:
            test.look_at(words)
        if progress:
            progress(train.read)
    return [overlap(seen, test) for test in tests]


def batches(pieces: Iterable[Piece], hasher: Hasher) -> Iterator[Hashes]:
    """About BATCH words at a time. Before each document stands a hash that is no word's: no n-gram reaches across.

    Each batch begins with the end of the one before, so that no n-gram is cut.
    """
    parts: list[Hashes] = []
    held = 0
    for number, piece in enumerate(pieces):
        new = [mix(np.array([number], np.uint64))] if piece.starts else []
        new.append(hasher.words(words_of(piece.text)))
        parts += new
        held += sum(map(len, new))
        if held >= BATCH:
            words = np.concatenate(parts)
            yield words
            parts = [words[-GPT3_N[1] + 1 :]]
            held = len(parts[0])
    yield np.concatenate(parts)


def overlap(seen: BloomFilter, test: TestSet) -> Overlap:
    grams = np.concatenate([ngrams(example, GPT2_N) for example in test.examples])
    found = int(seen.has(grams).sum())
    return Overlap(test.name, len(test.examples), len(grams), found, test.n, tuple(sorted(test.dirty)))


def read_test(path: Path, hasher: Hasher) -> TestSet:
    """Examples: the objects of JSON lines (all texts in them), or the lines of a text, those without words left out."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        texts = ["\n".join(texts_in(row)) for row in jsonl([path])]
    elif name.endswith(".json"):
        raise UserError(f"{path}: a .json file is not read; give JSON Lines, one example on each line")
    else:
        texts = kept_lines(open_text(path))
    examples = [hasher.words(words) for text in texts if (words := words_of(text))]
    if not examples:
        raise UserError(f"{path}: no words in it")
    return TestSet(str(path), examples)


def texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)


def as_json(found: Sequence[Overlap]) -> str:
    """With the places of dirty examples, so that a clean part can be made."""
    return json.dumps([each.as_dict() | {"dirty": list(each.dirty)} for each in found], indent=1)
