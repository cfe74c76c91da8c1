"""A vocabulary: which bytes each id stands for, and in which order byte pairs merge. No encoding happens here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gpt2.errors import UserError
from gpt2.tokenizer.merges import Pair, first_unreachable, recover_pairs

EOT = "<|endoftext|>"
MAX_ID = 2**31 - 1

# GPT-2 writes bytes as printable characters (openai/gpt-2 encoder.py, bytes_to_unicode): 188 bytes stand for
# themselves, the other 68 for U+0100 and up in order of the byte.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHAR = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
# For str.translate and latin-1: an unprintable character below 256 must fail like any foreign one, hence 0x10FFFF.
_CHAR_TO_BYTE = {ord(char): byte for byte, char in BYTE_TO_CHAR.items()} | dict.fromkeys(_OTHERS, 0x10FFFF)


def to_printable(data: bytes) -> str:
    """Bytes in GPT-2's printable alphabet: `b" the"` is `"Ġthe"`."""
    return data.decode("latin-1").translate(BYTE_TO_CHAR)


def from_printable(text: str) -> bytes | None:
    """The bytes that `text` spells in GPT-2's printable alphabet, or None where it has a character outside it."""
    try:
        return text.translate(_CHAR_TO_BYTE).encode("latin-1")
    except UnicodeEncodeError:
        return None


@dataclass(frozen=True)
class Vocabulary:
    """Ids and the bytes they stand for.

    `tokens`: bytes -> id. Kind "bpe": the 256 single bytes by id, then one token per merge in order of priority.
        Kind "char": the UTF-8 of each character.
    `special`: the text of each special or added token -> id. `always` names those of them that Hugging Face
        declares as added but not special, which its tokenizers match in any text.
    `unreachable`: id -> bytes that no merge makes; they can be decoded and are never encoded.
    `pairs`: the two parts of each merge, in order; None means that only ranks are known (see `merge_pairs`).
    """

    kind: Literal["bpe", "char"]
    tokens: dict[bytes, int]
    special: dict[str, int] = field(default_factory=dict)
    always: frozenset[str] = frozenset()
    unreachable: dict[int, bytes] = field(default_factory=dict)
    pairs: tuple[Pair, ...] | None = None

    @cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """id -> bytes for every id, special tokens as the UTF-8 of their text."""
        table = {id: text.encode("utf-8", "replace") for text, id in self.special.items()}
        return table | self.unreachable | {id: data for data, id in self.tokens.items()}

    @cached_property
    def hash(self) -> str:
        """sha256 of what decides ids: the same for the same vocabulary from any file form."""
        lines = [self.kind, *(f"{id} {data.hex()}" for data, id in self.tokens.items())]
        lines += [f"unreachable {id} {data.hex()}" for id, data in sorted(self.unreachable.items())]
        lines += [f"{'added' if t in self.always else 'special'} {i} {t!a}" for t, i in sorted(self.special.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def merge_pairs(self) -> tuple[Pair, ...]:
        """The two parts of each merge, recovered from the ranks where no merges were read.

        Raises UserError if a token cannot be made by merging: such ranks cannot be written as merges.
        """
        if self.pairs is not None:
            return self.pairs
        pairs = recover_pairs(list(self.tokens)[256:])
        if isinstance(pairs, bytes):
            raise UserError(
                f"token {self.tokens[pairs]} ({pairs!r}) is not made by merges: it cannot be written as merges"
            )
        return tuple(pairs)

    @property
    def in_merge_order(self) -> bool:
        """Whether the ids of merged tokens rise with the order of the merges, as GPT-2's do."""
        ids = list(self.tokens.values())[256:]
        return ids == sorted(ids)

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int], special: dict[str, int] | None, source: str) -> Vocabulary:
        """From tiktoken's form, where the id is the priority. `special=None` gives the first free id to end-of-text."""
        _check_ids([(repr(data), id) for data, id in ranks.items()], source)
        tokens = _single_bytes(ranks.get, source)
        tokens |= {data: id for data, id in sorted(ranks.items(), key=lambda item: item[1]) if len(data) > 1}
        if special is None:
            taken = set(ranks.values())
            special = {EOT: next(id for id in range(len(taken) + 1) if id not in taken)}
        return cls("bpe", tokens, special)

    @classmethod
    def from_merges(
        cls,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        added: dict[str, tuple[int | None, bool]],
        source: str,
        label: Callable[[int], str],
    ) -> Vocabulary:
        """From GPT-2's form: printable tokens -> id, pairs in order, added tokens -> (id or None, special?).

        `label(n)` names the place of merge n in an error. Raises UserError for what cannot be encoded exactly.
        """
        _check_ids(vocab.items(), source)
        spelled = {text: from_printable(text) for text in vocab}
        tokens = _single_bytes(lambda byte: vocab.get(to_printable(byte)), source)
        pairs = _merge_tokens(vocab, spelled, merges, tokens, label)
        bad = first_unreachable(pairs)
        if bad is not None:
            left, right = to_printable(bad[0]), to_printable(bad[1])
            place = label(next(n for n, merge in enumerate(merges) if tuple(merge) == (left, right)))
            raise UserError(f"{place}: earlier merges keep {left!r} and {right!r} from meeting; ids would differ")
        special = {text: vocab.get(text, id) for text, (id, _) in added.items()}
        unreachable: dict[int, bytes] = {}
        for text, data in spelled.items():
            if data in tokens or text in special:
                continue
            if text.startswith("<|") and text.endswith("|>"):  # the family's way to write a special token
                special[text] = vocab[text]
            else:
                unreachable[vocab[text]] = text.encode("utf-8", "replace") if data is None else data
        known = _numbered(special, vocab.values())
        _check_ids([*vocab.items(), *((text, id) for text, id in known.items() if text not in vocab)], source)
        always = frozenset(text for text, (_, is_special) in added.items() if not is_special)
        return cls("bpe", tokens, known, always, unreachable, pairs)

    @classmethod
    def from_characters(cls, characters: Sequence[str], ids: Sequence[int] | None = None) -> Vocabulary:
        """One id per character, in the order given (nanoGPT sorts them). Raises UserError for anything else."""
        for char in characters:
            if len(char) != 1 or "\ud800" <= char <= "\udfff":
                raise UserError(f"character vocabulary: {char!r} is not one Unicode character")
        if not characters or len(set(characters)) < len(characters):
            raise UserError("character vocabulary: needs at least one character, and each only once")
        tokens = {char.encode(): id for id, char in zip(ids or range(len(characters)), characters, strict=True)}
        _check_ids([(repr(data), id) for data, id in tokens.items()], "character vocabulary")
        return cls("char", dict(sorted(tokens.items(), key=lambda item: item[1])))


def _single_bytes(id_of: Callable[[bytes], int | None], source: str) -> dict[bytes, int]:
    """The 256 single bytes by id; without all of them some text could not be encoded."""
    found = {bytes([byte]): id_of(bytes([byte])) for byte in range(256)}
    missing = [byte[0] for byte, id in found.items() if id is None]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of the 256 bytes have no token (first: byte {missing[0]}), not byte-level BPE"
        )
    return dict(sorted(((byte, id) for byte, id in found.items() if id is not None), key=lambda item: item[1]))


def _merge_tokens(
    vocab: dict[str, int],
    spelled: dict[str, bytes | None],
    merges: Iterable[tuple[str, str]],
    tokens: dict[bytes, int],
    label: Callable[[int], str],
) -> tuple[Pair, ...]:
    """Add to `tokens` what each merge makes, in order, and return the pairs as bytes."""
    pairs: list[Pair] = []
    for n, (left, right) in enumerate(merges):
        made, a, b = spelled.get(left + right), spelled.get(left), spelled.get(right)
        if made is None:
            raise UserError(f"{label(n)}: merge {left!r} + {right!r} makes no token of the vocabulary")
        if a is None or b is None or a not in tokens or b not in tokens:
            raise UserError(f"{label(n)}: merge {left!r} + {right!r} has a part that no earlier merge makes")
        if made not in tokens:  # a second way to make a token has lower priority and so never comes to pass
            tokens[made] = vocab[left + right]
            pairs.append((a, b))
    return tuple(pairs)


def _numbered(special: dict[str, int | None], taken: Iterable[int]) -> dict[str, int]:
    """Added tokens without an id get the next ones past the end, in order, as Hugging Face does."""
    free = max([*taken, *(id for id in special.values() if id is not None)], default=-1) + 1
    numbered: dict[str, int] = {}
    for text, id in special.items():
        numbered[text] = free if id is None else id
        free += id is None
    return numbered


def _check_ids(items: Iterable[tuple[str, int]], source: str) -> None:
    """Ids must be whole numbers from 0, each used once."""
    seen: dict[int, str] = {}
    for name, id in items:
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id <= MAX_ID:
            raise UserError(f"{source}: token {name!r} has id {id!r}, not a whole number from 0 to {MAX_ID}")
        if id in seen:
            raise UserError(f"{source}: id {id} is given to both {seen[id]!r} and {name!r}")
        seen[id] = name
