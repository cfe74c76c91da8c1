"""What the commands that do a task share: their flags, their text, their examples, and the prompts made of these."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpt2.cli.shots import read_escapes
from gpt2.cli.writing import (
    SEED,
    Decorator,
    decorate,
    drawing_options,
    model_options,
    named,
    sampling_params,
    weights_options,
)
from gpt2.errors import UserError
from gpt2.inference.sampling import SamplingParams
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.evaluate.prompts import Example, Prompt
    from gpt2.evaluate.score import Scorer
    from gpt2.evaluate.verbs import Asker, Verb

Command = TypeVar("Command", bound=Callable[..., Any])
DRAWS = ("top_k", "top_p", "min_p")


def verb_options(defaults: SamplingParams) -> Callable[[Command], Command]:
    """--model and its like, how an answer is written, examples, and what becomes of a long text."""
    options: list[Decorator[Any]] = [
        model_options,
        weights_options,
        drawing_options(defaults),
        SEED,
        shots_options,
        long_option,
    ]
    return lambda command: decorate(command, options)


def shots_options(command: Command) -> Command:
    """--shots and --k, as `gpt2 generate --task` has them, and --template."""
    options = [
        click.option(
            "--template",
            metavar="TEXT",
            callback=read_escapes,
            help=r"Other words than the paper's, as those that a model was tuned on: 'Text: {input}\nShort:'.",
        ),
        click.option(
            "--shots",
            metavar="FILE",
            help='Solved examples to show: {"input": ..., "output": ...} on each line (or with names as told above), a '
            "CSV file with such columns, lines input||output, or another form that gpt2 finetune reads.",
        ),
        click.option(
            "--k",
            type=click.IntRange(0),
            metavar="N",
            help="So many examples, drawn with --seed (else 0); without it as many as the context holds.",
        ),
    ]
    return decorate(command, options)


def long_option(command: Command) -> Command:
    """--long."""
    option = click.option(
        "--long",
        type=click.Choice(("cut", "walk", "error")),
        default="cut",
        show_default=True,
        help="A text that the context cannot hold: read its beginning, read it piece by piece, or refuse. Beside "
        "examples a long text has half of the context.",
    )
    return option(command)


def verb_params(flags: Mapping[str, Any], greedy: bool) -> SamplingParams:
    """How an answer is written. Of a task that is greedy as published, naming a filter means to draw."""
    draws = greedy and not named("temperature") and any(map(named, DRAWS))
    return sampling_params({**flags, "temperature": 1.0} if draws else dict(flags))


def make_asker(verb: Verb, model: Model, room: int, flags: Mapping[str, Any], own: Sequence[Example] = ()) -> Asker:
    """Prompts for this model: the verb's, with --shots, else `own` examples; in turns where it has a chat template."""
    from gpt2.evaluate.verbs import Asker, read_shots
    from gpt2.tokenizer.chat_template import ChatTemplate

    source = model.tokenizer.chat_template if flags["template"] is None else None
    chat = ChatTemplate(source, model.tokenizer) if source else None
    verb = verb.in_turns() if chat else verb if flags["template"] is None else verb.worded(flags["template"])
    examples: Sequence[Example] = () if chat else own
    if flags["shots"] is not None:
        verb, examples = read_shots(flags["shots"], verb)
    elif flags["k"] is not None and not examples:
        raise UserError("--k: of which examples? add --shots FILE")
    if flags["k"] == 0:
        examples = ()
    if chat:
        say("asked in turns, as the model's chat template has them, not in the paper's words")
    return Asker(
        verb,
        model.tokenizer,
        model.config.context_length,
        room,
        examples,
        flags["k"],
        flags["seed"] or 0,
        flags["long"],
        chat,
    )


def shorter(params: SamplingParams, model: Model) -> SamplingParams:
    """The settings with room for a prompt: the published length, but at most half of the context unless named."""
    half = model.config.context_length // 2
    if named("max_new_tokens") or params.max_new_tokens <= half:
        return params
    return replace(params, max_new_tokens=half)


def ending(params: SamplingParams, asker: Asker) -> SamplingParams:
    """The settings with where the verb's answers stop."""
    stop = params.stop or asker.verb.ends(asker.examples)
    turn_ends = asker.chat.stop if asker.chat else ""
    return replace(params, stop=(*stop, turn_ends) if turn_ends else stop)


def ask(asker: Asker, item: Mapping[str, str]) -> list[Prompt]:
    """The item's prompts; says what is not read of it, in how many pieces it is, and which examples do not fit."""
    prompts = asker.prompts(item)
    if asker.verb.long and not asker.fits(item):
        read = "its beginning is" if asker.long == "cut" else f"it is, in {len(prompts)} pieces,"
        say(f"the text does not fit the model's context of {asker.context_length:,} tokens: {read} read (--long)")
    if asker.examples:
        say(f"{min(prompt.shots_used for prompt in prompts)} of {len(asker.examples)} examples beside it")
    return prompts


def scorer_for(model: Model, texts: int) -> Scorer:
    """What writes and compares, for so many texts."""
    from gpt2.evaluate.score import Scorer
    from gpt2.inference.scheduler import MAX_STREAMS

    return Scorer(model, max(1, min(texts, MAX_STREAMS)))


def read_input(name: str) -> str:
    """A file's text, or standard input's for `-`; UserError where it is empty or no text."""
    from gpt2.cli.generate import read_prompt
    from gpt2.evaluate.rows import open_text

    where = "standard input" if name == "-" else name
    if name == "-" and sys.stdin.isatty():
        say("reading standard input; Ctrl-D ends it")
    text = read_prompt("-") if name == "-" else open_text(Path(name))
    if not text.strip():
        raise UserError(f"{where}: empty")
    if "\0" in text:
        raise UserError(f"{where}: not a text, it holds a zero byte")
    return text.strip()
