"""`gpt2 generate`: a prompt's continuation, on the terminal as it is written or as JSON; or a whole file of prompts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.shots import answer_ends, few_shot_prompt, refuse_without_task, shot_options
from gpt2.cli.writing import (
    SETTINGS,
    load_model,
    make_drafter,
    model_options,
    named,
    sampling_options,
    sampling_params,
    writing_options,
)
from gpt2.errors import UserError
from gpt2.inference.rows import Piece, Text
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.inference.engine import Engine
    from gpt2.inference.rows import Overflow, Prompt, Result
    from gpt2.inference.sampling import SamplingParams


@click.command(context_settings=SETTINGS)
@click.argument("prompt", required=False)
@model_options
@writing_options
@click.option("--n", default=1, show_default=True, help="So many texts from the one prompt.")
@sampling_options
@shot_options
@click.option("--beams", type=int, metavar="N", help="Search for the likeliest text with N beams; nothing is drawn.")
@click.option("--length-penalty", type=float, metavar="P", help="With --beams: above 0 favours long texts [0.6].")
@click.option("--special", is_flag=True, help="Read <|endoftext|> in the prompt as the token, not as these letters.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a text and line, with each token's logprob.")
@click.option("--logprobs", type=int, metavar="K", help="With --json: also each token's K likeliest alternatives.")
@click.option(
    "--echo/--no-echo",
    default=None,
    help="Print the prompt before its continuation; the default is to do so on a terminal only.",
)
@click.option("--input", "input_", metavar="FILE", help='Prompts, one JSON object a line: {"prompt": "...", ...}.')
@click.option("--output", metavar="FILE", help="With --input: where the texts go, as --json prints them.")
def command(prompt: str | None, **flags: Any) -> None:
    """Let a model continue a prompt.

    The text goes to standard output as it is written. Without a PROMPT, or with -, the prompt is read from standard
    input (one line end at its end is left out); on a terminal it is then empty and the model begins a text of its
    own. Several texts (--n) are set apart by lines of dashes. With --json each line holds prompt, sample, text,
    tokens, token_texts, logprobs (nats, by the model itself, before temperature and filters), top_logprobs,
    finish_reason (stop, length, eot or overflow), prompt_tokens and prompt_dropped.

    With --task the prompt is one item of a task, and solved ones (--shots) come before it, as many as fit: never cut,
    never the item itself. How many is said on standard error.

    With --input each line may have settings of its own (max_new_tokens, temperature, ...), an id, and an adapter (the
    folder of one over the model: all are written together); the output has index, id and adapter, in the order in which
    texts are finished. The same command again goes on where a run ended.

    \b
    Examples:
      gpt2 generate "Once upon a time"
      gpt2 generate --model runs/my --temperature 0 --max-new-tokens 50 "The sea"
      gpt2 generate --model gpt2 --n 3 --seed 1 --stop "\\n" "My favourite colour is"
      gpt2 generate --model gpt2 --beams 4 --max-new-tokens 30 "The capital of France is"
      git diff | gpt2 generate --json --logprobs 5
      gpt2 generate --task "English: {input}\\nFrench:" --shots shots.jsonl --max-new-tokens 20 "cheese"
      gpt2 generate --task "Q: {input}\\nA:" --instruction "Answer with one word." --max-new-tokens 5 "Who sings?"
      gpt2 generate --input prompts.jsonl --output texts.jsonl
    """
    refuse_contradictions(prompt, flags)
    params = sampling_params(flags | {"stop": answer_ends(flags)})
    if flags["input_"] is not None:
        write_file(flags, params)
        return
    text = read_prompt(prompt)
    model = load_model(flags)
    if flags["task"] is not None:
        text = few_shot_prompt(text, model, params.max_new_tokens, flags)
    words = with_special(text, model) if flags["special"] else text
    engine = None
    if flags["beams"] is not None:
        pieces = search(model, words, params, flags)
    else:
        Text(model.config, model.tokenizer, words, params, flags["overflow"])  # refuses before weights are read
        engine = make_engine(model, params.n, flags)
        pieces = engine.stream([words], params, flags["overflow"])
    printer = (
        JsonPrinter(model, text) if flags["as_json"] else Printer(text if _echoes(flags["echo"]) else "", params.n)
    )  # prints its first line, so nothing is refused behind it
    print_all(model, pieces, printer, engine)


def refuse_contradictions(prompt: str | None, flags: dict[str, Any]) -> None:
    """Flags that would do nothing beside others."""
    refuse_without_task(flags)
    if flags["logprobs"] is not None and not (flags["as_json"] or flags["input_"]):
        raise UserError("--logprobs: only --json prints them; add --json")
    if flags["echo"] is not None and flags["as_json"]:
        raise UserError("--echo: --json always has the prompt beside the text; leave one out")
    if flags["length_penalty"] is not None and flags["beams"] is None:
        raise UserError("--length-penalty: only beam search has one; add --beams")
    if (flags["input_"] is None) != (flags["output"] is None):
        raise UserError("--input and --output: one names the prompts, the other where their texts go; give both")
    if flags["input_"] is not None:
        given = [name for name in ("as_json", "beams", "echo") if named(name)] + ["PROMPT"] * (prompt is not None)
        for name in given:
            flag = {"as_json": "--json", "PROMPT": "PROMPT"}.get(name, f"--{name}")
            raise UserError(f"{flag}: does not go with --input; leave one out")
    if flags["beams"] is not None and named("draft"):
        raise UserError("--draft: beam search takes no guesses; leave one out")


def make_engine(model: Model, texts: int, flags: dict[str, Any]) -> Engine:
    """What writes with these flags."""
    from gpt2.inference.engine import Engine
    from gpt2.inference.scheduler import MAX_STREAMS

    streams = max(1, min(texts, MAX_STREAMS))
    return Engine(model, streams, make_drafter(flags["draft"], model, streams, flags))


def search(model: Model, words: Prompt, params: SamplingParams, flags: dict[str, Any]) -> Iterator[Piece]:
    """The best texts that beam search finds."""
    from gpt2.inference.beam import BeamParams, beam_search, refuse

    penalty = {} if flags["length_penalty"] is None else {"length_penalty": flags["length_penalty"]}
    beams = BeamParams(num_beams=flags["beams"], **penalty)
    overflow: Overflow = flags["overflow"] if named("overflow") else "stop"
    refuse(params, beams, overflow)  # before weights are read
    runner = model.runner(beams.num_beams)
    results = beam_search(runner, model.tokenizer, [words], params, beams, overflow)
    return (Piece(row, result.text, result) for row, result in enumerate(results))


def print_all(
    model: Model, pieces: Iterator[Piece], printer: Printer | JsonPrinter, engine: Engine | None = None
) -> None:
    """Print what comes, and on a terminal say how fast it came."""
    started, tokens = time.perf_counter(), 0
    for piece in pieces:
        printer.take(piece)
        tokens += len(piece.result.tokens) if piece.result else 0
    if sys.stderr.isatty():
        seconds = time.perf_counter() - started
        guesses = engine.stats if engine else None
        right = f", {guesses.accepted} of {guesses.drafted} guesses right" if guesses and guesses.drafted else ""
        say(f"[{model.folder}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s{right}]")


def write_file(flags: dict[str, Any], params: SamplingParams) -> None:
    """--input to --output."""
    from gpt2.inference import batch
    from gpt2.inference.scheduler import MAX_STREAMS

    items = batch.read_items(Path(flags["input_"]), params)
    model = load_model(flags, batch.named_adapters(items))
    if flags["special"]:
        items = [replace(item, prompt=with_special(item.prompt, model)) for item in items]

    def as_dict(item: batch.Item, result: Result) -> dict[str, Any]:
        name = {} if item.id is None else {"id": item.id}
        name |= {} if item.adapter is None else {"adapter": item.adapter}
        return {"index": item.index, **name, **text_as_dict(item.written, result, model.tokenizer.decode)}

    engine = make_engine(model, min(MAX_STREAMS, sum(item.params.n for item in items)), flags)
    batch.write_all(engine, items, Path(flags["output"]), as_dict, flags["overflow"])
    if engine.stats.drafted:
        say(f"{engine.stats.accepted} of {engine.stats.drafted} guesses right")


def with_special(prompt: Prompt, model: Model) -> Prompt:
    """A text's tokens, special ones where their names stand in it."""
    return model.tokenizer.encode(prompt, allowed_special="all") if isinstance(prompt, str) else prompt


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
            print(json.dumps(text_as_dict(self.prompt, piece.result, self.decode)), flush=True)


def text_as_dict(prompt: str | list[int], result: Result, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """What --help promises; alternatives as lists of {token, text, logprob}."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "sample": result.sample,
        "text": result.text,
        "tokens": result.tokens,
        "token_texts": [decode([token]) for token in result.tokens],
        "logprobs": result.logprobs,
    }
    if result.top_logprobs:
        values["top_logprobs"] = [
            [{"token": token, "text": decode([token]), "logprob": logprob} for token, logprob in top]
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
