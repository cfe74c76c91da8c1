"""`gpt2 finetune`: a model and a file of examples in, a run folder with a model or an adapter out."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.train import SettingsCommand, silent_elsewhere
from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer
    from gpt2.train.finetune import Tuned
    from gpt2.train.lessons import Lessons
    from gpt2.train.tune_config import TuneConfig

SHORT_STEPS = 4  # of a run under GPT2_SHORT=1, which the tests of the documentation set
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
SHOWN = 1_200  # characters of the first example, at most


class FinetuneCommand(SettingsCommand):
    """`gpt2 finetune` with the fields of TuneConfig."""

    def settings(self) -> type[Any]:
        from gpt2.train.tune_config import TuneConfig

        return TuneConfig


@click.command(
    "finetune",
    cls=FinetuneCommand,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    options_metavar="",
)
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run, bit for bit.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG.toml] [--KEY VALUE ...]")
def command(resume: str | None, words: tuple[str, ...]) -> None:
    """Teach a model your task from a file of examples.

    The file is recognised by its content: plain text, {"text"}, {"prompt", "completion"}, {"instruction", "input",
    "output"}, {"messages"}, lines input||output, CSV or TSV with named columns, {"text", "label"}, {"prompt",
    "chosen", "rejected"}. What was recognised and the first example are shown before training; of it only what is
    not dimmed is learned. Ctrl-C saves and says how to go on.

    \b
    Examples:
      gpt2 finetune --model runs/my --data pairs.jsonl --out runs/tuned
      gpt2 finetune --model openai-community/gpt2 --data pairs.jsonl --out runs/lora --method lora   # needs network
      gpt2 finetune --model runs/my --data texts.csv --columns text=review,label=stars --out runs/stars
      gpt2 finetune --model runs/my --data pairs.jsonl --out runs/int8 --method lora --base_weights int8
      gpt2 finetune --resume runs/tuned
    """
    from gpt2.distributed.launch import joined
    from gpt2.train import finetune
    from gpt2.train.tune_config import compose

    with joined() as ranks, silent_elsewhere():
        if resume is not None:
            changes = ranks.attempt(lambda: changes_of_layout(resume, words))
            finish(finetune.resume(resume, complete, changes=changes))
            return
        path = words[0] if words and not words[0].startswith("-") else None
        flags = words[1:] if path else words
        config = ranks.attempt(lambda: as_typed(compose(path, flags, **short_settings()), flags))
        finish(finetune.finetune(config, complete, show))


def as_typed(config: TuneConfig, flags: tuple[str, ...]) -> TuneConfig:
    r"""The settings with a template from the command line read as every command reads one: \n is a line end there."""
    from gpt2.cli.writing import unescape

    if config.template is None or not any(flag.startswith("--template") for flag in flags):
        return config
    return replace(config, template=unescape(config.template))


def changes_of_layout(run: str, words: tuple[str, ...]) -> dict[str, Any]:
    """What a resumed run may be told anew: how its work is laid out, by the names of TuneConfig."""
    from gpt2.config import parse_flags
    from gpt2.train.tune_config import TuneConfig

    if words and not words[0].startswith("-"):
        raise UserError(f"{words[0]}: a resumed run keeps its settings; to change them start anew with --model {run}")
    return parse_flags(TuneConfig, words)


def short_settings() -> dict[str, Any]:
    """A handful of steps where GPT2_SHORT is set, and nothing otherwise."""
    if not os.environ.get("GPT2_SHORT"):
        return {}
    from gpt2.runtime import say

    say(f"GPT2_SHORT is set: {SHORT_STEPS} steps only")
    return {"max_steps": SHORT_STEPS, "eval_examples": 20}


def show(lessons: Lessons) -> None:
    """What was recognised, what was cut or skipped, and the first example with its masked part dimmed."""
    from gpt2.data.examples import preview
    from gpt2.runtime import say

    say(f"recognised: {lessons.train.format}")
    for note in lessons.train.notes:
        say(note)
    say("the first example; what is dimmed is read, not learned:" if coloured() else "the first example:")
    say(marked(preview(lessons.train, lessons.tokenizer), coloured()))


def coloured() -> bool:
    """Whether stderr shows colours: a terminal, and nobody has asked for none."""
    return sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def marked(pieces: list[tuple[str, bool]], colours: bool) -> str:
    """An example's text with what is not learned dimmed, or where that cannot be, between (( and ))."""
    before, behind = (DIM, PLAIN) if colours else ("((", "))")
    shown, left = [], SHOWN
    for text, learned in pieces:
        if left <= 0:
            shown.append(" ...")
            break
        part = visible(text[:left])
        left -= len(text)
        shown.append(part if learned else f"{before}{part}{behind}")
    return "".join(shown)


def visible(text: str) -> str:
    """Without characters that would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def complete(module: GPT, tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    """How the model goes on from a prompt, by the likeliest token each time."""
    from gpt2.inference.generate import generate
    from gpt2.inference.sampling import SamplingParams

    given = len(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    length = min(64, module.config.context_length - max(1, given))
    if length < 1:
        return "(the prompt leaves no room)"
    return generate(module, tokenizer, [prompt], SamplingParams(max_new_tokens=length, temperature=0.0))[0].text


def finish(tuned: Tuned) -> None:
    """Say where everything lies; exit with 130 after Ctrl-C, with 0 after SIGTERM, which asked for just that."""
    from gpt2.runtime import say

    if tuned.report is not None:
        for line in tuned.report.table():
            click.echo(line)
    if tuned.stopped_by == signal.SIGINT:
        raise click.exceptions.Exit(130)
    if tuned.stopped_by is not None:
        return
    name = "best" if tuned.state.best_step else "last"
    say(f"model:  {tuned.folder / name}")
    say(f"next:   {tuned.use}")
