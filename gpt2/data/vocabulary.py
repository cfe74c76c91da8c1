"""Which tokenizer the shards are made with: one by name, or one trained on the training side alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gpt2.data.splitting import Part
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

SAMPLE_CHARS = 32 << 20  # text that a BPE is trained on, at most: memory and time stay bounded
BYTES_PER_ENTRY = 2500
SMALLEST, LARGEST = 512, 32768


def auto_vocab_size(text_bytes: int) -> int:
    """One entry for 2,500 bytes of text, as a power of two from 512 to 32,768 (10 MB: 4,096)."""
    exponent = round(math.log2(max(1, text_bytes) / BYTES_PER_ENTRY))
    return max(SMALLEST, min(LARGEST, 2 ** max(0, exponent)))


def make_tokenizer(name: str, parts: Iterable[Part], chars: int) -> Tokenizer:
    """Train or load what `--tokenizer` names (`auto` already resolved). `chars` is the length of all parts.

    Raises UserError for a name that means nothing.
    """
    from gpt2.tokenizer.files import get_tokenizer
    from gpt2.tokenizer.train import train_bpe, train_char

    if name == "char":
        # Of the whole text, as nanoGPT's: held-out text then has no unknown symbols.
        return train_char(part.text for part in parts)
    if not name.startswith("train:"):
        return get_tokenizer(name)
    size = name.removeprefix("train:")
    if not size.isdecimal() or int(size) < 257:
        raise UserError(f"--tokenizer {name}: write train:N, N at least 257 (256 bytes and <|endoftext|>)")
    say(f"training a tokenizer of {int(size):,} tokens on the training side")
    return train_bpe(sample(parts, min(1.0, SAMPLE_CHARS / chars)), int(size))


def sample(parts: Iterable[Part], share: float) -> Iterator[str]:
    """About `share` of the training side's characters, taken evenly from beginning to end."""
    owed = 0.0
    for part in parts:
        if part.split == "train":
            owed += share * len(part.text)
            if owed >= len(part.text):
                owed -= len(part.text)
                yield part.text
