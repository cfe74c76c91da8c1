"""Text to ids and back: tiktoken's byte-pair encoder, or one id per character, behind one small class.

Special tokens are text unless the caller allows them: a user who types <|endoftext|> gets seven ordinary tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from gpt2.errors import UserError, did_you_mean
from gpt2.tokenizer.marks import MARK, PLAIN_PATTERN, WHITE_SPACE, mark_cuts
from gpt2.tokenizer.vocabulary import EOT, Vocabulary

if TYPE_CHECKING:
    import tiktoken

# GPT-2's pattern (openai/gpt-2 encoder.py) as tiktoken writes it: possessive where nothing is lost by it, and a run
# of white space at the end of the text matched without looking ahead.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

MARKED_FROM = 256  # characters; in shorter texts marks cost more than they save
LONG_RUN = 4096  # characters; the engine's stack overflows near a million
_NOT_SPACE = re.compile(f"[^{WHITE_SPACE}]")
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # where decode(errors="surrogateescape") parks such bytes

UNKNOWN_CHARACTERS = "\ufffd? \n"  # the first of these that a character vocabulary has stands for unknown ones


class Codec(Protocol):
    """What a kind of vocabulary must do for text that holds no special token."""

    def encode(self, text: str) -> list[int]: ...
    def encode_array(self, text: str) -> np.ndarray: ...
    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def encode_bytes(self, data: bytes) -> list[int]: ...


class Tokenizer:
    """A vocabulary with its encoder. Immutable; may be shared by threads and pickled to processes.

    `chat_template`, where there is one, is the Jinja source that its files carry (chat_template.py).
    """

    def __init__(self, vocabulary: Vocabulary, chat_template: str | None = None):
        self.vocabulary = vocabulary
        self.chat_template = chat_template
        self.kind = vocabulary.kind
        self.special_tokens = dict(vocabulary.special)
        self.eot_id = vocabulary.special.get(EOT)
        self._bytes_of = vocabulary.bytes_of
        self.vocab_size = max(self._bytes_of) + 1

    @classmethod
    def from_characters(cls, characters: Sequence[str], ids: Sequence[int] | None = None) -> Tokenizer:
        """One id per character in the order given. Raises UserError for one that is no character or comes twice.

        A character outside the vocabulary is encoded as the first of U+FFFD, "?", space, newline that it has, else
        as its lowest id. There is no end-of-text token.
        """
        return cls(Vocabulary.from_characters(characters, ids))

    @classmethod
    def bytes_only(cls) -> Tokenizer:
        """256 bytes, each its own value as id, and end-of-text as 256."""
        return cls(Vocabulary("bpe", {bytes([byte]): byte for byte in range(256)}, {EOT: 256}, pairs=()))

    def with_template(self, source: str | None) -> Tokenizer:
        """The same vocabulary with another chat template, which its files will carry; None: with none."""
        return Tokenizer(self.vocabulary, source)

    @property
    def hash(self) -> str:
        """sha256 (hex) of ids, bytes, merge order, special tokens and kind: the same from any file form."""
        return self.vocabulary.hash

    def encode(self, text: str, allowed_special: Collection[str] | Literal["all"] = ()) -> list[int]:
        """Ids of `text`; special tokens in it are plain text unless named in `allowed_special`.

        Never raises on any text: a lone surrogate counts as U+FFFD. Raises UserError for an unknown special token.
        """
        wanted = self._wanted(allowed_special)
        if not wanted:
            return self._codec.encode(text)
        ids: list[int] = []
        for n, part in enumerate(_splitter(wanted).split(text)):
            if n % 2:
                ids.append(self.special_tokens[part])
            elif part:
                ids += self._codec.encode(part)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """`encode(text)` as a uint32 array, without a Python list in between; the GIL is free meanwhile."""
        if self.vocabulary.always:
            return np.array(self.encode(text), dtype=np.uint32)
        return self._codec.encode_array(text)

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_array` of each text; many short ones take half the time of one by one."""
        if self.vocabulary.always:
            return [self.encode_array(text) for text in texts]
        return self._codec.encode_arrays(texts)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes. UTF-8 in them is encoded as text; of the rest each byte is one token.

        A character vocabulary reads what is not UTF-8 as U+FFFD. Never raises.
        """
        return self._codec.encode_bytes(data)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Ids outside the vocabulary, like padding rows, give nothing. Arrays and tensors do."""
        plain = ids.tolist() if hasattr(ids, "tolist") else ids
        get = self._bytes_of.get
        return b"".join([get(id, b"") for id in plain])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one id; empty for an id outside the vocabulary."""
        return self._bytes_of.get(id, b"")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    @cached_property
    def _codec(self) -> Codec:
        return BytePairCodec(self.vocabulary) if self.kind == "bpe" else CharacterCodec(self.vocabulary)

    def _wanted(self, allowed: Collection[str] | Literal["all"]) -> frozenset[str]:
        if allowed == "all":
            return frozenset(self.special_tokens)
        names = {allowed} if isinstance(allowed, str) else set(allowed)
        for name in names - self.special_tokens.keys():
            raise UserError(
                f"{name!r} is not a special token of this vocabulary{did_you_mean(name, self.special_tokens)}"
            )
        return self.vocabulary.always | names

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary, str | None]]:
        return Tokenizer, (self.vocabulary, self.chat_template)

    def __repr__(self) -> str:
        return f"<Tokenizer {self.kind}, {self.vocab_size} ids, {self.hash[:12]}>"


class StreamDecoder:
    """Text from ids one by one; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that became certain with this id; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never became whole. The decoder can then be used anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class BytePairCodec:
    """Byte-level BPE by tiktoken, whose ranks are priority and id in one; other ids are mapped afterwards."""

    def __init__(self, vocabulary: Vocabulary):
        ids = list(vocabulary.tokens.values())
        in_order = vocabulary.in_merge_order
        ranks = vocabulary.tokens if in_order else {data: n for n, data in enumerate(vocabulary.tokens)}
        self._id_of_rank = None if in_order else np.array(ids, dtype=np.uint32)
        self._id_of_byte = [vocabulary.tokens[bytes([byte])] for byte in range(256)]
        self._rank = ranks
        self._no_rank = max(ranks.values()) + 1
        # Tokenizer.encode splits at special tokens; tiktoken's own is never allowed. It is given one because of none
        # it makes an empty pattern, which matches at every character and halves the speed of encode_to_numpy.
        self._tiktoken = self._encoding(PATTERN, EOT)

    def _encoding(self, pattern: str, special: str) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            "gpt2", pat_str=pattern, mergeable_ranks=self._rank, special_tokens={special: self._no_rank}
        )

    @cached_property
    def _plain(self) -> tiktoken.Encoding:
        """For marked texts; made for the first long one, as generating text needs none."""
        return self._encoding(PLAIN_PATTERN, MARK)

    def encode(self, text: str) -> list[int]:
        if self._id_of_rank is not None:
            return self.encode_array(text).tolist()
        if len(text) < LONG_RUN:
            return self._tiktoken.encode_ordinary(text)
        parts = [self._tiktoken.encode_ordinary(part) for part in split_long_runs(text)]
        return parts[0] if len(parts) == 1 else [id for part in parts for id in part]

    def encode_array(self, text: str) -> np.ndarray:
        try:
            ranks = self._ranks(text)
        except UnicodeEncodeError:  # lone surrogates become U+FFFD and pairs a character, as in encode_ordinary
            return self.encode_array(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return ranks if self._id_of_rank is None else self._id_of_rank[ranks]

    def _ranks(self, text: str) -> np.ndarray:
        if len(text) >= MARKED_FROM and MARK not in text:
            marked = self._plain.encode_to_numpy(mark_cuts(text), allowed_special={MARK}, disallowed_special=())
            return marked[marked != self._no_rank]
        parts = [self._tiktoken.encode_to_numpy(part, disallowed_special=()) for part in split_long_runs(text)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        short = [text for text in texts if len(text) < MARKED_FROM and EOT not in text]
        try:
            found = iter(self._joined(short))
        except UnicodeEncodeError:
            return [self.encode_array(text) for text in texts]
        return [
            next(found) if len(text) < MARKED_FROM and EOT not in text else self.encode_array(text) for text in texts
        ]

    def _joined(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text's ids, by one call for all: what stands between two special tokens is encoded alone."""
        ranks = self._tiktoken.encode_to_numpy(EOT.join([*texts, ""]), allowed_special={EOT}, disallowed_special=())
        ends = np.flatnonzero(ranks == self._no_rank)
        ids = ranks if self._id_of_rank is None else np.append(self._id_of_rank, 0).astype(np.uint32)[ranks]
        return [ids[start:end] for start, end in zip([0, *(ends[:-1] + 1).tolist()], ends.tolist(), strict=False)]

    def encode_bytes(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(_NOT_UTF8.split(data.decode("utf-8", "surrogateescape"))):
            if n % 2:
                ids += [self._id_of_byte[ord(char) - 0xDC00] for char in part]
            elif part:
                ids += self.encode(part)
        return ids


class CharacterCodec:
    """One id per character, by a table over code points."""

    def __init__(self, vocabulary: Vocabulary):
        characters = {data.decode(): id for data, id in vocabulary.tokens.items()}
        points = np.array([ord(char) for char in characters])
        self.unknown = unknown_character(characters)
        self._table = np.full(points.max() + 2, characters[self.unknown], dtype=np.uint32)
        self._table[points] = list(characters.values())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return self._table[np.minimum(points, len(self._table) - 1)]  # the table's last entry is never a character's

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode_array(text) for text in texts]

    def encode_bytes(self, data: bytes) -> list[int]:
        return self.encode(data.decode("utf-8", "replace"))


def unknown_character(characters: dict[str, int]) -> str:
    """The character that stands for those outside the vocabulary."""
    usual = [char for char in UNKNOWN_CHARACTERS if char in characters]
    return usual[0] if usual else min(characters, key=lambda char: characters[char])


def split_long_runs(text: str) -> Iterator[str]:
    """Cut `text` around very long runs of white space, at places where GPT-2's pattern cuts anyway.

    No piece crosses from other text into white space. A run before other text gives all but its last character as one
    piece (`\\s+(?!\\S)`), and a run at the end all of it; so these are safe to match alone, where no look-ahead is
    needed. A run of LONG_RUN characters covers one of the places looked at, which makes the search nearly free.
    """
    done = at = 0
    while at < len(text):
        if text[at] in WHITE_SPACE:
            begin = max(done, at - LONG_RUN + 1)
            start = begin + len(text[begin:at].rstrip(WHITE_SPACE))
            found = _NOT_SPACE.search(text, at)
            end = found.start() if found else len(text)
            if end - start >= LONG_RUN:
                last = end - 1 if found else end
                yield from filter(None, (text[done:start], text[start:last]))
                done = last
            at = end - 1
        at += LONG_RUN
    if done < len(text) or not text:
        yield text[done:]


@lru_cache(maxsize=64)
def _splitter(texts: frozenset[str]) -> re.Pattern[str]:
    """Splits at any of `texts`; where several begin at one place the longest wins, as in Hugging Face's tokenizers."""
    return re.compile("(" + "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) + ")")
