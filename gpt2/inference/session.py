"""A text that goes on over several turns; what was read of it stays in the engine's pages."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from gpt2.inference.jobs import take
from gpt2.inference.rows import Overflow, Prompt, encode_prompt
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.inference.engine import Engine
    from gpt2.tokenizer.bpe import Tokenizer


class Session:
    """One transcript: what was put in and what was shown of the answers.

    `tokens` is the whole transcript; the model sees its last window, those from `start` on. What an answer sampled but
    did not show (a stop string, end-of-text, half a character) is not part of it. A turn reads what is new and at most
    a page of what was there before; past the context the window's last half is read again, as the engine does it.
    """

    def __init__(self, engine: Engine, overflow: Overflow = "slide") -> None:
        self.engine, self.overflow = engine, overflow
        self.context_length = engine.runner.config.context_length
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.tokens: list[int] = []
        self.start = 0

    def stream(self, text: Prompt, params: SamplingParams | None = None) -> Generator[str, None, None]:
        """Add the text, or tokens, and go on from there, piece by piece; an empty text just goes on.

        Closing the iterator, or an exception in it (Ctrl-C), ends the answer there; what was shown stays. Raises
        UserError as `generate` does.
        """
        tokenizer = self.engine.tokenizer
        added = tokenizer.encode(text) if isinstance(text, str) else list(text)
        tokens = self.tokens + added or encode_prompt(self.engine.runner.config, tokenizer, "")
        slides = self.tokens and self.overflow == "slide"
        start = slide(self.start, len(tokens), self.context_length) if slides else self.start
        job = self.engine.add(tokens[start:], params, self.overflow)
        (request,) = job.requests
        (row,) = request.rows
        start = max(start, len(tokens) - self.context_length)  # of a long first text the model reads the end
        shown = ""
        try:
            while job.inbox or not job.over:
                while job.inbox:
                    piece = take(job.inbox)
                    shown += piece.text
                    yield piece.text
                if not job.over:
                    self.engine.step()
        finally:
            self.engine.cancel(job)
            self.tokens = tokens + tokens_of(tokenizer, row.tokens, shown)
            for length in range(len(tokens) + 1, len(self.tokens) + 1):
                start = slide(start, length, self.context_length)
            self.start = start


def slide(start: int, length: int, context_length: int) -> int:
    """Where the window over a text of `length` tokens begins that began at `start`; see Request.append."""
    return start if length - start <= context_length else length - max(1, context_length // 2)


def tokens_of(tokenizer: Tokenizer, tokens: list[int], text: str) -> list[int]:
    """Tokens of `text`, a beginning of what `tokens` decode to: as many of these as fit, the rest encoded anew."""
    for count in range(len(tokens), -1, -1):
        head = tokenizer.decode(tokens[:count])
        if text.startswith(head):
            return tokens[:count] + tokenizer.encode(text[len(head) :])
    return tokenizer.encode(text)
