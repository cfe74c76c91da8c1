"""Long texts in pieces that a prompt has room for, cut where a reader would pause."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt2.evaluate.prompts import Encoder

LETTERS = 16  # characters looked at for each token of room: more than tokens have, but in runs of one character
PAUSES = (r"\n\s*\n", r"[.!?][\"')\]]*\s", r"\s")  # a paragraph's end, a sentence's, a word's: the first that is there


def pieces(text: str, tokenizer: Encoder, room: int) -> Iterator[str]:
    """The text in pieces of at most `room` tokens (at least one character), without the white space around them.

    A piece ends at a paragraph's end, else at a sentence's, else at a word's, where there is one in its second half.
    """
    text = text.rstrip()
    start = 0
    while start < len(text):
        start = re.compile(r"\s*").match(text, start).end()  # type: ignore[union-attr]
        end = start + len(head(text[start : start + LETTERS * max(1, room)], tokenizer, room))
        if end < len(text):
            end = start + pause(text[start : end + 1])
        yield text[start:end].rstrip()
        start = end


def head(text: str, tokenizer: Encoder, room: int) -> str:
    """A beginning of at most `room` tokens, nearly the longest; one character where that alone has more."""
    while len(ids := tokenizer.encode(text)) > room and len(text) > 1:
        text = text[: max(1, min(len(text) - 1, len(text) * room // len(ids) + 1))]
    return text


def pause(text: str) -> int:
    """Where to cut a text whose last character no longer fits: behind its last pause, if in its second half."""
    for pattern in PAUSES:
        ends = [found.end() for found in re.finditer(pattern, text) if found.end() > len(text) // 2]
        if ends:
            return ends[-1]
    return len(text) - 1
