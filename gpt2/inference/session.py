"""A text that goes on over several turns, each of its tokens read once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2.inference.generate import evaluating, write
from gpt2.inference.reader import Reader
from gpt2.inference.rows import Overflow, Row, Text, encode_prompt
from gpt2.inference.sampling import SamplingParams
from gpt2.model.gpt import GPT

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer


class Session:
    """One transcript: what was put in and what was shown of the answers, with its keys and values kept.

    `tokens` is the whole transcript; the model sees its last window. What an answer sampled but did not show (a stop
    string, end-of-text, half a character) is not part of it.
    """

    def __init__(self, module: GPT, tokenizer: Tokenizer, overflow: Overflow = "slide") -> None:
        self.module, self.tokenizer, self.overflow = module, tokenizer, overflow
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.tokens: list[int] = []
        self._reader = Reader(self.module, 1)

    @torch.inference_mode()
    def stream(self, text: str, params: SamplingParams | None = None) -> Generator[str, None, None]:
        """Add the text and go on from there, piece by piece; an empty text just goes on.

        Closing the iterator, or an exception in it (Ctrl-C), ends the answer there; what was shown stays. Raises
        UserError as `generate` does.
        """
        params = params or SamplingParams()
        config = self.module.config
        tokens = self.tokens + self.tokenizer.encode(text) or encode_prompt(config, self.tokenizer, "")
        row = Row(Text(config, self.tokenizer, tokens, params, self.overflow))
        self.tokens = tokens
        try:
            with evaluating(self.module):
                for piece in write(self._reader, self._read(), [row], params):
                    yield piece.text
        finally:
            self.tokens = tokens + tokens_of(self.tokenizer, row.tokens, "".join(row.written))

    def _read(self) -> Tensor:
        """Bring the reader to the transcript's end, reusing what it has read; the logits (1, V) there."""
        (window,), (start,) = self._reader.windows, self._reader.starts
        same = common_prefix(window, self.tokens[start:-1])  # the last is read anew: its logits are wanted
        self._reader.rewind(len(window) - same)
        if not same:
            start = max(0, len(self.tokens) - self.module.config.context_length)
            self._reader.starts = [start]
        return self._reader.read([self.tokens[start + same :]])


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts share from their start."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def tokens_of(tokenizer: Tokenizer, tokens: list[int], text: str) -> list[int]:
    """Tokens of `text`, a beginning of what `tokens` decode to: as many of these as fit, the rest encoded anew."""
    for count in range(len(tokens), -1, -1):
        head = tokenizer.decode(tokens[:count])
        if text.startswith(head):
            return tokens[:count] + tokenizer.encode(text[len(head) :])
    return tokenizer.encode(text)
