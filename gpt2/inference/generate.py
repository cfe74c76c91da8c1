"""Writing, the plain way: one loop over a KV cache. The oracle that every faster engine is tested against.

B rows  V vocabulary
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from gpt2.errors import UserError, did_you_mean
from gpt2.inference.reader import Reader
from gpt2.inference.sampling import Choice, SamplingParams, choose
from gpt2.inference.stop import StopStrings
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

Overflow = Literal["slide", "stop", "error"]
FinishReason = Literal["stop", "length", "eot", "overflow"]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Result:
    """One finished text.

    `text` is the continuation without the prompt, the end-of-text token and the stop string. `tokens` are all that
    were sampled, those of the ending included; `logprobs` (nats, by the model itself: before temperature, penalties
    and filters) and `top_logprobs` (the likeliest (token, log-probability), best first) go with them one to one.
    """

    prompt: int  # which of the prompts
    sample: int  # which of its n samples
    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[tuple[tuple[int, float], ...]]
    finish_reason: FinishReason
    prompt_tokens: int  # tokens of the prompt that the model read
    prompt_dropped: int  # tokens cut from its start, as they do not fit the context


@dataclass(frozen=True)
class Piece:
    """Text that has just become certain of one row; the row's last piece (its text may be empty) has the result."""

    row: int  # place of the row in generate's list of results
    text: str
    result: Result | None = None


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
        if text.dropped:
            total, read = text.dropped + len(text.prompt), len(text.prompt)
            say(f"a prompt of {total} tokens: the model reads the last {read}, all that its context holds")
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


class Text:
    """What all samples of one prompt share: its tokens as the model reads them, and the room after them."""

    def __init__(
        self,
        config: GPTConfig,
        tokenizer: Tokenizer,
        prompt: Prompt,
        params: SamplingParams,
        overflow: Overflow,
        index: int = 0,
    ) -> None:
        self.tokenizer, self.params, self.index = tokenizer, params, index
        tokens = encode_prompt(config, tokenizer, prompt)
        check_overflow(len(tokens), config.context_length, params.max_new_tokens, overflow)
        self.prompt = tokens[-config.context_length :]
        self.dropped = len(tokens) - len(self.prompt)
        self.room = None if overflow == "slide" else config.context_length - len(self.prompt)


@dataclass
class Row:
    """One text in the making: its tokens, what may be shown of them, and why it ended."""

    text: Text
    index: int = 0
    sample: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.random: random.Random = self.text.params.random_stream(self.sample)
        self.choices: list[Choice] = []
        self.written: list[str] = []
        self._decoder = self.text.tokenizer.stream()
        self._stops = StopStrings(self.text.params.stop)

    def push(self, choice: Choice) -> str:
        """Take the next token; the text that it makes certain. Sets `finish_reason` if it was the last."""
        params = self.text.params
        self.choices.append(choice)
        self.tokens.append(choice.token)
        if choice.token == self.text.tokenizer.eot_id and not params.ignore_eot:
            return self._finish("eot")
        shown = self._show(self._stops.push(self._decoder.push(choice.token)))
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self.tokens) >= params.max_new_tokens:
            return shown + self._finish("length")
        elif self.text.room is not None and len(self.tokens) >= self.text.room:
            return shown + self._finish("overflow")
        return shown

    def result(self) -> Result:
        """The finished text."""
        assert self.finish_reason is not None
        return Result(
            prompt=self.text.index,
            sample=self.sample,
            text="".join(self.written),
            tokens=self.tokens,
            logprobs=[choice.logprob for choice in self.choices],
            top_logprobs=[choice.top for choice in self.choices] if self.text.params.logprobs else [],
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.text.prompt),
            prompt_dropped=self.text.dropped,
        )

    def _finish(self, reason: FinishReason) -> str:
        """Let out what the decoder (half a character) and the stop strings held back."""
        rest = self._stops.push(self._decoder.finish())
        self.finish_reason = "stop" if self._stops.found else reason
        return self._show(rest + self._stops.finish())

    def _show(self, text: str) -> str:
        self.written.append(text)
        return text


def encode_prompt(config: GPTConfig, tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt's tokens, at least one; special tokens spelled out in it are plain text."""
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    vocab_size = min(config.vocab_size, tokenizer.vocab_size)
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise UserError(f"token id {token} in the prompt: the model's are 0 to {vocab_size - 1}")
    if tokens:
        return tokens
    return [tokenizer.eot_id] if tokenizer.eot_id is not None else tokenizer.encode("\n")


def check_overflow(length: int, context_length: int, max_new_tokens: int, overflow: Overflow) -> None:
    """Refuse, before any work, what the user does not want to happen past the context."""
    if overflow not in get_args(Overflow):
        known = get_args(Overflow)
        raise UserError(f"--overflow {overflow}: unknown{did_you_mean(overflow, known)}; choose {', '.join(known)}")
    if overflow == "error" and length + max_new_tokens > context_length:
        raise UserError(
            f"the prompt's {length} tokens and --max-new-tokens {max_new_tokens} pass the model's context of "
            f"{context_length}; shorten one, or use --overflow slide or stop"
        )
    if overflow == "stop" and length >= context_length:
        raise UserError(
            f"the prompt's {length} tokens leave no room in the model's context of {context_length}; "
            "shorten it, or use --overflow slide"
        )


@contextmanager
def evaluating(module: GPT) -> Iterator[None]:
    """Dropout off inside, as it was outside: a model may be asked for a sample in the middle of its training."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
