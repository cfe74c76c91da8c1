"""`gpt2 generate --task`: a prompt of solved examples, as GPT-3 was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpt2.cli.writing import decorate, named, unescape
from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.evaluate.prompts import Example, Template

Command = TypeVar("Command", bound=Callable[..., Any])
NEED_TASK = ("shots", "k", "separator", "instruction", "answer_field")


def shot_options(command: Command) -> Command:
    """--task and what goes with it."""
    options = [
        click.option(
            "--task",
            metavar="TEMPLATE",
            callback=read_escapes,
            help=r"How an item is written up to its answer, as 'English: {input}\nFrench:'. PROMPT then fills the "
            'field; of several fields it is a JSON object: {"question": "...", "topic": "..."}.',
        ),
        click.option("--shots", metavar="FILE", help="With --task: solved items, one JSON object of fields a line."),
        click.option(
            "--k",
            type=click.IntRange(0),
            metavar="N",
            help="With --shots: so many of them, drawn with --seed (else 0); without it as many as the context holds.",
        ),
        click.option(
            "--answer-field",
            metavar="NAME",
            help="With --shots: the field that follows the template [output or completion].",
        ),
        click.option(
            "--separator",
            default="\n\n",
            metavar="TEXT",
            callback=read_escapes,
            help=r"With --task: stands between examples, and ends the answer unless --stop is given [\n\n].",
        ),
        click.option(
            "--instruction",
            default="",
            metavar="TEXT",
            callback=read_escapes,
            help="With --task: comes first, as 'Translate English to French:'.",
        ),
    ]
    return decorate(command, options)


def read_escapes(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    return None if text is None else unescape(text)


def refuse_without_task(flags: dict[str, Any]) -> None:
    """Flags that would do nothing beside others."""
    if flags["task"] is None:
        for name in filter(named, NEED_TASK):
            raise UserError(
                f"--{name.replace('_', '-')}: only a task has it; add --task 'English: {{input}}\\nFrench:'"
            )
        return
    if flags["input_"] is not None:
        raise UserError("--task: does not go with --input; leave one out")
    if flags["shots"] is None:
        for name in filter(named, ("k", "answer_field")):
            raise UserError(f"--{name.replace('_', '-')}: of which examples? add --shots FILE")


def answer_ends(flags: dict[str, Any]) -> tuple[str, ...]:
    """Where a text stops: as told, or where the next example would begin."""
    stop: tuple[str, ...] = flags["stop"]
    return stop or ((flags["separator"],) if flags["task"] is not None and flags["separator"] else ())


def few_shot_prompt(text: str, model: Model, max_new_tokens: int, flags: dict[str, Any]) -> str:
    """The whole prompt for an item given as text; says how many examples it has. UserError for what cannot be used."""
    from gpt2.evaluate.prompts import Form, PromptBuilder, Template, read_examples
    from gpt2.runtime import say

    template = Template(flags["task"], flags["answer_field"])
    examples = [] if flags["shots"] is None else read_examples(flags["shots"], template)
    form = Form(flags["k"], flags["separator"], flags["instruction"], instruct_shots=True)
    room, seed = max_new_tokens, flags["seed"] or 0
    builder = PromptBuilder(form, examples, model.tokenizer, model.config.context_length, room, seed)
    prompt = builder.build(read_item(text, template))
    if examples:
        say(
            f"{prompt.shots_used} of {len(examples)} examples in a prompt of {len(prompt.ids):,} tokens; the context "
            f"holds {model.config.context_length:,}, of them {room:,} for the answer (--max-new-tokens)"
        )
    return prompt.text


def read_item(text: str, template: Template) -> Example:
    """What the user typed as the item: the template's one field, or a JSON object of several."""
    from gpt2.evaluate.prompts import Example, read_object

    if len(template.fields) == 1:
        return Example(template.context({template.fields[0]: text}))
    where = f"PROMPT (a JSON object with {', '.join(template.fields)})"
    return Example(template.context(read_object(text, where), where))
