"""Texts in the making, apart from the model that writes them: what goes in, what comes out, why it ends. No torch.

The plain loop and the engine share these, so that both cut, stop and report in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from gpt2.errors import UserError, did_you_mean
from gpt2.inference.sampling import Choice, SamplingParams
from gpt2.inference.stop import StopStrings
from gpt2.model.config import GPTConfig
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
        adapter: int = 0,
    ) -> None:
        self.tokenizer, self.params, self.index, self.adapter = tokenizer, params, index, adapter
        tokens = encode_prompt(config, tokenizer, prompt)
        check_overflow(len(tokens), config.context_length, params.max_new_tokens, overflow)
        self.prompt = tokens[-config.context_length :]
        self.dropped = len(tokens) - len(self.prompt)
        self.room = None if overflow == "slide" else config.context_length - len(self.prompt)

    def say_what_was_dropped(self) -> None:
        """One line for the user where the model reads only the prompt's end."""
        if self.dropped:
            total, read = self.dropped + len(self.prompt), len(self.prompt)
            say(f"a prompt of {total} tokens: the model reads the last {read}, all that its context holds")


class Replay(random.Random):
    """A row's random numbers; those drawn for a choice that came to nothing can be put back."""

    def __init__(self, source: random.Random) -> None:
        super().__init__(0)
        self._source = source
        self._drawn: list[float] = []
        self._again: list[float] = []  # the next last

    def random(self) -> float:
        number = self._again.pop() if self._again else self._source.random()
        self._drawn.append(number)
        return number

    def keep(self) -> None:
        """What was drawn is used."""
        self._drawn.clear()

    def put_back(self) -> None:
        """What was drawn since the last `keep` comes again, in the same order."""
        self._again += reversed(self._drawn)
        self._drawn.clear()


@dataclass
class Row:
    """One text in the making: its tokens, what may be shown of them, and why it ended."""

    text: Text
    index: int = 0
    sample: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.random = Replay(self.text.params.random_stream(self.sample))
        self.choices: list[Choice] = []
        self.written: list[str] = []
        self._decoder = self.text.tokenizer.stream()
        self._stops = StopStrings(self.text.params.stop)

    def push(self, choice: Choice) -> str:
        """Take the next token; the text that it makes certain. Sets `finish_reason` if it was the last."""
        params = self.text.params
        self.random.keep()
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
