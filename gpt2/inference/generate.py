"""Writing, the plain way: one loop over a KV cache. The oracle that every faster engine is tested against.

B rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2.inference.reader import Reader
from gpt2.inference.rows import Overflow, Piece, Prompt, Result, Row, Text, check_overflow
from gpt2.inference.sampling import SamplingParams, choose
from gpt2.model.gpt import GPT

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

__all__ = ["Overflow", "Piece", "Prompt", "Result", "check_overflow", "evaluating", "generate", "stream", "write"]


def generate(
    module: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams | None = None,
    overflow: Overflow = "slide",
    on_text: Callable[[int, str], None] | None = None,
) -> list[Result]:
    """Continue each prompt (text, or token ids) `params.n` times; the results of the first prompt come first.

    An empty prompt starts from end-of-text, or from a line end where the vocabulary has no such token. A text past
    the context length slides (the last half of the window is kept and read again; of a prompt that is longer its
    end), stops (finish_reason "overflow"), or is refused (UserError before the first token). `on_text` gets
    (row, text) as it is written. Raises UserError too for token ids outside the vocabulary.
    """
    results: dict[int, Result] = {}
    for piece in stream(module, tokenizer, prompts, params, overflow):
        if on_text and piece.text:
            on_text(piece.row, piece.text)
        if piece.result:
            results[piece.row] = piece.result
    return [results[row] for row in sorted(results)]


@torch.inference_mode()
def stream(
    module: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams | None = None,
    overflow: Overflow = "slide",
) -> Iterator[Piece]:
    """`generate`, piece by piece as the text becomes certain; rows come mixed, each in its own order."""
    params = params or SamplingParams()
    if isinstance(prompts, str):
        raise TypeError("prompts is a list: [prompt]")
    texts = [Text(module.config, tokenizer, prompt, params, overflow, index) for index, prompt in enumerate(prompts)]
    if not texts:
        return
    for text in texts:
        text.say_what_was_dropped()
    with evaluating(module):
        capacity = max(len(text.prompt) for text in texts) + params.max_new_tokens
        reader = Reader(module, len(texts), capacity)
        logits = reader.read([text.prompt for text in texts])
        order = [index for index in range(len(texts)) for _ in range(params.n)]  # each prompt is read once
        reader.select(order)
        rows = [Row(texts[index], row, row % params.n) for row, index in enumerate(order)]
        yield from write(reader, logits[order], rows, params)


def write(reader: Reader, logits: Tensor, rows: Sequence[Row], params: SamplingParams) -> Iterator[Piece]:
    """The loop: choose a token for every row from logits (B, V), let finished rows go, read the tokens, again."""
    live = list(rows)
    while live:
        choices = choose(
            logits[:, : live[0].text.tokenizer.vocab_size],  # ids that the model has and the tokenizer lacks: none
            [row.text.prompt for row in live],
            [row.tokens for row in live],
            params,
            [row.random for row in live],
        )
        for row, choice in zip(live, choices, strict=True):
            written = row.push(choice)
            if written or row.finish_reason:
                yield Piece(row.index, written, row.result() if row.finish_reason else None)
        going_on = [place for place, row in enumerate(live) if not row.finish_reason]
        live = [live[place] for place in going_on]
        if live:
            reader.select(going_on)
            logits = reader.read([row.tokens[-1:] for row in live])


@contextmanager
def evaluating(module: GPT) -> Iterator[None]:
    """Dropout off inside, as it was outside: a model may be asked for a sample in the middle of its training."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
