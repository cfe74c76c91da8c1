"""`gpt2 generate`: a prompt's continuation, on the terminal as it is written or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.writing import SETTINGS, load_model, model_options, sampling_options, sampling_params
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.inference.generate import Piece, Result


@click.command(context_settings=SETTINGS)
@click.argument("prompt", required=False)
@model_options
@click.option("--n", default=1, show_default=True, help="So many texts from the one prompt.")
@sampling_options
@click.option("--special", is_flag=True, help="Read <|endoftext|> in the prompt as the token, not as these letters.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a text and line, with each token's logprob.")
@click.option("--logprobs", type=int, metavar="K", help="With --json: also each token's K likeliest alternatives.")
@click.option(
    "--echo/--no-echo",
    default=None,
    help="Print the prompt before its continuation; the default is to do so on a terminal only.",
)
def command(prompt: str | None, special: bool, as_json: bool, echo: bool | None, overflow: str, **flags: Any) -> None:
    """Let a model continue a prompt.

    The text goes to standard output as it is written. Without a PROMPT, or with -, the prompt is read from standard
    input (one line end at its end is left out); on a terminal it is then empty and the model begins a text of its
    own. Several texts (--n) are set apart by lines of dashes. With --json each line holds prompt, sample, text,
    tokens, token_texts, logprobs (nats, by the model itself, before temperature and filters), top_logprobs,
    finish_reason (stop, length, eot or overflow), prompt_tokens and prompt_dropped.

    \b
    Examples:
      gpt2 generate "Once upon a time"
      gpt2 generate --model runs/my --temperature 0 --max-new-tokens 50 "The sea"
      gpt2 generate --model gpt2 --n 3 --seed 1 --stop "\\n" "My favourite colour is"
      git diff | gpt2 generate --json --logprobs 5
    """
    if flags["logprobs"] is not None and not as_json:
        raise UserError("--logprobs: only --json prints them; add --json")
    if echo is not None and as_json:
        raise UserError("--echo: --json always has the prompt beside the text; leave one out")
    params = sampling_params(flags)
    text = read_prompt(prompt)
    model = load_model(flags)
    from gpt2.inference.generate import stream

    words = model.tokenizer.encode(text, allowed_special="all") if special else text
    printer = JsonPrinter(model, text) if as_json else Printer(text if _echoes(echo) else "", params.n)
    started, tokens = time.perf_counter(), 0
    for piece in stream(model.module, model.tokenizer, [words], params, overflow):  # type: ignore[arg-type]
        printer.take(piece)
        tokens += len(piece.result.tokens) if piece.result else 0
    if sys.stderr.isatty():
        seconds = time.perf_counter() - started
        say(f"[{model.folder}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s]")


class Printer:
    """Texts as they are written, in order: a later one waits until those before it are done."""

    def __init__(self, prompt: str, count: int) -> None:
        self.prompt, self.count = prompt, count
        self.current = 0
        self.waiting: list[list[str]] = [[] for _ in range(count)]
        self.done = [False] * count
        self.last = "\n"
        self._begin()

    def take(self, piece: Piece) -> None:
        self.waiting[piece.row].append(piece.text)
        self.done[piece.row] = piece.result is not None
        while self.current < self.count:
            self._print("".join(self.waiting[self.current]))
            self.waiting[self.current].clear()
            if not self.done[self.current]:
                return
            self._print("" if self.last == "\n" else "\n")
            self.current += 1
            if self.current < self.count:
                self._begin()

    def _begin(self) -> None:
        if self.count > 1:
            self._print(f"---- {self.current + 1} of {self.count} ----\n")
        self._print(self.prompt)

    def _print(self, text: str) -> None:
        if text:
            print(text, end="", flush=True)
            self.last = text[-1]


class JsonPrinter:
    """One object a line, as soon as a text is done."""

    def __init__(self, model: Model, prompt: str) -> None:
        self.decode: Callable[[list[int]], str] = model.tokenizer.decode
        self.prompt = prompt

    def take(self, piece: Piece) -> None:
        if piece.result:
            print(json.dumps(self.as_dict(piece.result)), flush=True)

    def as_dict(self, result: Result) -> dict[str, Any]:
        """What --help promises; alternatives as lists of {token, text, logprob}."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "sample": result.sample,
            "text": result.text,
            "tokens": result.tokens,
            "token_texts": [self.decode([token]) for token in result.tokens],
            "logprobs": result.logprobs,
        }
        if result.top_logprobs:
            values["top_logprobs"] = [
                [{"token": token, "text": self.decode([token]), "logprob": logprob} for token, logprob in top]
                for top in result.top_logprobs
            ]
        return values | {
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "prompt_dropped": result.prompt_dropped,
        }


def read_prompt(prompt: str | None) -> str:
    """The argument, or standard input (UTF-8) where there is none and it is not a terminal, or where it is `-`."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        return ""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None
    return text.removesuffix("\n").removesuffix("\r")


def _echoes(echo: bool | None) -> bool:
    return sys.stdout.isatty() if echo is None else echo
