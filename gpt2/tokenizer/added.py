"""New tokens in an old vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpt2.errors import UserError
from gpt2.tokenizer.bpe import Tokenizer


def add_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer with these texts as tokens of their own, with the next free ids, in this order.

    They are found in any text, in training data and prompts alike, as Hugging Face finds added tokens; every other
    text keeps its ids. One that the vocabulary has as an added token already is left as it is. Raises UserError for
    an empty text, one given twice, one that is an ordinary token already, or a vocabulary of characters.
    """
    vocabulary = tokenizer.vocabulary
    if vocabulary.kind != "bpe":
        raise UserError("new tokens: a vocabulary of characters takes none; use one of byte pairs")
    ordinary = {data.decode("utf-8", "replace") for data in vocabulary.tokens}
    for text in texts:
        if not text.strip():
            raise UserError(f"new token {text!r}: has no visible character")
        if texts.count(text) > 1:
            raise UserError(f"new token {text!r}: is given twice")
        if text in ordinary:
            raise UserError(f"new token {text!r}: is a token of this vocabulary already")
    new = [text for text in texts if text not in vocabulary.special]
    special = vocabulary.special | {text: tokenizer.vocab_size + n for n, text in enumerate(new)}
    changed = replace(vocabulary, special=special, always=vocabulary.always | set(new))
    return Tokenizer(changed, tokenizer.chat_template)
