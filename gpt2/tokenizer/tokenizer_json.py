"""Hugging Face's tokenizer.json: what of it this package can follow exactly, and how it writes its own.

The format is that of the `tokenizers` library. What would give other ids than GPT-2's byte-level scheme is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpt2.errors import UserError
from gpt2.tokenizer.bpe import unknown_character
from gpt2.tokenizer.vocabulary import Vocabulary, to_printable

Added = dict[str, tuple[int | None, bool]]  # text -> (id if given, special?)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# Settings of the BPE model, and the values under which it is plain byte-level BPE.
PLAIN_MODEL = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}


def parse_tokenizer_json(data: dict[str, Any], declared: Added, source: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json, with tokens that files beside it declare.

    A post-processor (one that adds a token in front, say) is not followed: `encode` gives the ids of the text alone.
    Raises UserError for a model, normalizer or pre-tokenizer that is not GPT-2's.
    """
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UserError(f"{source}: model type {_kind(model)} is not supported, only BPE")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{source}: model.vocab must be an object and model.merges a list")
    for key, plain in PLAIN_MODEL.items():
        if model.get(key) not in plain:
            raise UserError(f"{source}: model.{key} = {model[key]!r} is not supported, ids would differ")
    if data.get("normalizer") is not None:
        raise UserError(f"{source}: normalizer {_kind(data['normalizer'])} is not supported, ids would differ")
    if _is_characters(data):
        return Vocabulary.from_characters(list(vocab), list(vocab.values()))
    _check_byte_level(data.get("pre_tokenizer"), source)
    added = declared | parse_added(data.get("added_tokens") or [], source)
    pairs = [_pair(merge, n, source) for n, merge in enumerate(merges)]
    vocabulary = Vocabulary.from_merges(vocab, pairs, added, source, lambda n: f"{source} merge {n}")
    if model.get("ignore_merges") and vocabulary.unreachable:
        raise UserError(f"{source}: ignore_merges with tokens that no merge makes is not supported, ids would differ")
    return vocabulary


def parse_added(entries: Iterable[Any], source: str) -> Added:
    """`added_tokens` of tokenizer.json, or tokenizer_config.json's `added_tokens_decoder` with its keys as ids."""
    added: Added = {}
    for entry in entries:
        try:
            text, id = str(entry["content"]), int(entry["id"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{source}: added token {str(entry)[:60]} lacks an id or content") from None
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                raise UserError(f"{source}: added token {text!r} with {flag} is not supported, ids would differ")
        if text:
            added[text] = (id, bool(entry.get("special", False)))
    return added


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The document for a vocabulary. Raises UserError if a special token is spelled like an ordinary one."""
    is_bpe = vocabulary.kind == "bpe"
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if is_bpe else unknown_character({d.decode(): i for d, i in vocabulary.tokens.items()}),
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": spelled_vocab(vocabulary),
        "merges": [f"{to_printable(a)} {to_printable(b)}" for a, b in vocabulary.merge_pairs] if is_bpe else [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_entry(vocabulary, text) for text in _by_id(vocabulary.special)],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL if is_bpe else None,
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True} if is_bpe else {"type": "Fuse"},
        "model": model,
    }


def spelled_vocab(vocabulary: Vocabulary) -> dict[str, int]:
    """Every token as JSON spells it -> id, in order of the ids."""
    if vocabulary.kind == "char":
        return {data.decode(): id for data, id in vocabulary.tokens.items()}
    vocab = {to_printable(data): id for data, id in vocabulary.tokens.items()}
    vocab |= {to_printable(data): id for id, data in vocabulary.unreachable.items()}
    for text, id in vocabulary.special.items():
        if vocab.setdefault(text, id) != id:
            raise UserError(
                f"special token {text!r} is spelled like ordinary token {vocab[text]}: rename it to save it"
            )
    return {text: vocab[text] for text in _by_id(vocab)}


def _by_id(ids: dict[str, int]) -> list[str]:
    return sorted(ids, key=lambda text: ids[text])


def _added_entry(vocabulary: Vocabulary, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": vocabulary.special[text], "content": text, **flags, "special": text not in vocabulary.always}


def _is_characters(data: dict[str, Any]) -> bool:
    """Our own form of a character vocabulary: no pre-tokenizer, no merges, and ids joined without spaces."""
    return data.get("pre_tokenizer") is None and not data["model"]["merges"] and _kind(data.get("decoder")) == "Fuse"


def _check_byte_level(pre: Any, source: str) -> None:
    if _kind(pre) == "Sequence" and len(pre.get("pretokenizers") or []) == 1:
        pre = pre["pretokenizers"][0]
    if _kind(pre) != "ByteLevel":
        raise UserError(f"{source}: pre-tokenizer {_kind(pre)} is not supported, only GPT-2's ByteLevel")
    if pre.get("add_prefix_space", True) or not pre.get("use_regex", True):
        raise UserError(f"{source}: ByteLevel with add_prefix_space or without its pattern is not supported")


def _pair(merge: Any, n: int, source: str) -> tuple[str, str]:
    """A merge as "a b" or as ["a", "b"] (tokenizers 0.20 and later)."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{source} merge {n}: expected a pair of symbols, found {str(merge)[:40]!r}")
    return parts[0], parts[1]


def _kind(part: Any) -> str:
    return str(part.get("type")) if isinstance(part, dict) else "none" if part is None else type(part).__name__
