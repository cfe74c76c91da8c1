"""Learn a vocabulary from text: byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2), or characters.

The merges are learned here and not by the `tokenizers` library for one reason: of equally frequent pairs that takes the
one with the smaller ids, an accident of its bookkeeping, and no setting changes it. Here the greater pair of byte
strings wins, which is the rule of the published references (Stanford CS336) and depends on the text alone.
"""

from __future__ import annotations

import heapq
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby

import numpy as np

from gpt2.errors import UserError
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.marks import WHITE_SPACE
from gpt2.tokenizer.merges import Pair
from gpt2.tokenizer.vocabulary import BYTE_TO_CHAR, EOT, Vocabulary

BLOCK = 2**20  # characters of text cut into pieces at once, to keep memory flat
_BORDER = re.compile(f"(?<=[^{WHITE_SPACE}])[{WHITE_SPACE}]")


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (EOT,), min_frequency: int = 2
) -> Tokenizer:
    """Byte-level BPE with GPT-2's pattern: 256 bytes in GPT-2's order, then merges, then the special tokens.

    The vocabulary is smaller than `vocab_size` (which counts all three) when no pair occurs `min_frequency` times any
    more. Each text is a document: no token reaches across two. Raises UserError for sizes that cannot be.
    """
    room = vocab_size - 256 - len(special_tokens)
    if room < 0 or min_frequency < 1:
        least = 256 + len(special_tokens)
        raise UserError(f"BPE training: vocab_size must be {least} or more (is {vocab_size}), min_frequency 1 or more")
    words = count_pieces(texts)
    # in GPT-2's own order, which is that of the printable characters
    tokens = [bytes([byte]) for byte in sorted(range(256), key=lambda byte: BYTE_TO_CHAR[byte])]
    pairs = learn_merges(words, room, min_frequency)
    tokens += [a + b for a, b in pairs]
    special = {text: len(tokens) + n for n, text in enumerate(special_tokens)}
    return Tokenizer(Vocabulary("bpe", {data: id for id, data in enumerate(tokens)}, special, pairs=tuple(pairs)))


def train_char(texts: Iterable[str]) -> Tokenizer:
    """All characters of the texts in sorted order, as nanoGPT's character datasets have them. No end-of-text token."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return Tokenizer.from_characters(sorted("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in seen))


def count_pieces(texts: Iterable[str]) -> Counter[bytes]:
    """How often each piece that GPT-2's pattern cuts off occurs, as UTF-8."""
    counts: Counter[str] = Counter()
    for text in texts:
        for block in _blocks(text):
            counts.update(_pattern().findall(block))
    return Counter({piece.encode("utf-8", "replace"): count for piece, count in counts.items()})


@cache
def _pattern() -> re.Pattern[str]:
    """GPT-2's pattern for Python's `re`, which has no \\p{L} and \\p{N}: the classes are written out, once a process.

    Tried and slower: [^\\W\\d_] and the like (a tenth of the speed), `tokenizers`' pre-tokenizer (a fifth).
    """
    ranges: dict[str, list[str]] = {f"{kind}{plane}": [] for kind in "LN ?" for plane in "01"}
    for kind, group in groupby(range(sys.maxunicode + 1), key=_kind):
        points = list(group)
        ranges[kind].append(f"\\U{points[0]:08x}-\\U{points[-1]:08x}")
    # `re` looks up the first 65,536 characters in a table and walks through a list for the others: keep them apart
    letter, number, other = (
        f"(?:[{''.join(ranges[kind + '0'])}]+|(?=[\\U00010000-\\U0010ffff])[{''.join(ranges[kind + '1'])}]+)+"
        for kind in "LN?"
    )
    space = "".join(ranges[" 0"])
    return re.compile(rf"'(?:[sdmt]|ll|ve|re)| ?{letter}| ?{number}| ?{other}|[{space}]+(?![^{space}])|[{space}]")


def _kind(point: int) -> str:
    """The class of a code point in GPT-2's pattern (letter, number, white space, other), and 0 or 1 for its plane."""
    char = chr(point)
    kind = " " if char in WHITE_SPACE else unicodedata.category(char)[0]
    return (kind if kind in "LN " else "?") + ("0" if point < 0x10000 else "1")


def _blocks(text: str) -> Iterator[str]:
    """Cut a long text where white space begins, a place no piece crosses."""
    start = 0
    while start < len(text):
        found = _BORDER.search(text, start + BLOCK)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def learn_merges(words: Counter[bytes], room: int, min_frequency: int) -> list[Pair]:
    """Up to `room` merges: each time the pair that is most frequent, of equals the greatest by its byte strings."""
    corpus = _Corpus(words, min_frequency)
    pairs: list[Pair] = []
    while len(pairs) < room:
        best = corpus.pop_best()
        if best is None:
            break
        pairs.append(corpus.merge(*best))
    return pairs


class _Corpus:
    """The distinct pieces end to end in one array, with every pair's count and places.

    A token is its number; numbers below 256 are bytes. After a merge the left part's place holds the new token and the
    right part's is skipped, by `after` and `before`: the places of the next and previous token. Borders hold -1.

    A pair can only lose occurrences once it is there, because later merges make pairs with the newer token. So counts
    in the heap are upper bounds, checked when popped; and a pair below `min_frequency` need never be looked at.
    """

    def __init__(self, words: Counter[bytes], min_frequency: int):
        spaced = [np.frombuffer(b"\0" + word, dtype=np.uint8) for word in words]  # the \0 becomes the border
        lengths = np.array([len(word) for word in spaced], dtype=np.int64)
        self.tokens = np.concatenate([*spaced, np.zeros(1, np.uint8)]).astype(np.int32)
        self.tokens[np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)] = -1
        self.weight = np.append(np.repeat(np.array(list(words.values()), dtype=np.int64), lengths), 0)
        self.after = np.arange(1, len(self.tokens) + 1)
        self.before = np.arange(-1, len(self.tokens) - 1)
        self.min_frequency = min_frequency
        self.data = [bytes([byte]) for byte in range(256)]
        self.order = [_reversed_order(data) for data in self.data]
        self.counts: dict[int, int] = {}
        self.places: dict[int, np.ndarray] = {}
        self.heap: list[tuple[int, str, str, int]] = []
        inside = np.flatnonzero((self.tokens[:-1] >= 0) & (self.tokens[1:] >= 0))
        self._add(inside)

    def pop_best(self) -> tuple[int, int] | None:
        """The numbers of the best pair's tokens, or None if none is frequent enough."""
        while self.heap:
            negative, left, right, key = heapq.heappop(self.heap)
            count = self.counts[key]
            if count == -negative:
                return key >> 32, key & 0xFFFFFFFF
            if count >= self.min_frequency:
                heapq.heappush(self.heap, (-count, left, right, key))
        return None

    def merge(self, a: int, b: int) -> Pair:
        """Make token a+b at every place of the pair; return the pair's bytes."""
        tokens, after, before = self.tokens, self.after, self.before
        del self.counts[a << 32 | b]
        left = self.places.pop(a << 32 | b)
        left = left[(tokens[left] == a) & (tokens[after[left]] == b)]
        if a == b:
            left = _every_other(left, after)
        right = after[left]
        following, preceding = after[right], before[left]
        chained = np.append(False, following[:-1] == left[1:])  # the pair again just before: that neighbour goes too
        self._drop(preceding[~chained], left[~chained])
        self._drop(right, following)
        new = len(self.data)
        tokens[left], tokens[right] = new, -1
        after[left], before[following] = following, left
        preceding = before[left]
        starts = np.concatenate([preceding[(tokens[preceding] >= 0) & ~chained], left[tokens[following] >= 0]])
        self.data.append(self.data[a] + self.data[b])
        self.order.append(_reversed_order(self.data[new]))
        self._add(starts)
        return self.data[a], self.data[b]

    def _add(self, starts: np.ndarray) -> None:
        """Count the pairs that begin at these places, each place once."""
        keys = self.tokens[starts].astype(np.int64) << 32 | self.tokens[self.after[starts]]
        order = np.argsort(keys, kind="stable")
        keys, starts = keys[order], starts[order]
        borders = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
        counts = np.add.reduceat(self.weight[starts], borders) if len(keys) else borders
        ends = np.append(borders[1:], len(keys))
        frequent = np.flatnonzero(counts >= self.min_frequency)
        for n in frequent.tolist():
            key, count = int(keys[borders[n]]), int(counts[n])
            self.counts[key], self.places[key] = count, np.sort(starts[borders[n] : ends[n]])
            heapq.heappush(self.heap, (-count, self.order[key >> 32], self.order[key & 0xFFFFFFFF], key))

    def _drop(self, first: np.ndarray, second: np.ndarray) -> None:
        """Take the pairs at these neighbouring places out of the counts."""
        inside = (self.tokens[first] >= 0) & (self.tokens[second] >= 0)
        first, second = first[inside], second[inside]
        keys = self.tokens[first].astype(np.int64) << 32 | self.tokens[second]
        unique, where = np.unique(keys, return_inverse=True)
        lost = np.bincount(where, weights=self.weight[first], minlength=len(unique))
        for key, count in zip(unique.tolist(), lost.tolist(), strict=True):
            if key in self.counts:
                self.counts[key] -= int(count)


def _every_other(places: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of overlapping pairs of one token (aaaa) the first, third and so on, as merging from the left does."""
    index = np.arange(len(places))
    begins = np.append(True, after[places[:-1]] != places[1:]) if len(places) else np.zeros(0, bool)
    start = np.maximum.accumulate(np.where(begins, index, 0))
    return places[(index - start) % 2 == 0]


def _reversed_order(data: bytes) -> str:
    """A key that sorts byte strings backwards, for a heap that gives the smallest first; a prefix comes last."""
    return "".join([chr(255 - byte) for byte in data]) + "\u0100"
