"""`gpt2 train`: settings from a file and flags, a run folder out."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer
    from gpt2.train.drive import Finished

EXIT_USER = 2
SHORT_STEPS = 4  # of a run under GPT2_SHORT=1, which the tests of the documentation set


class SettingsCommand(click.Command, ABC):
    """A command whose flags are the fields of a configuration, listed by --help from the fields themselves."""

    @abstractmethod
    def settings(self) -> type[Any]:
        """The configuration's class, imported when it is asked for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        from gpt2.config import describe

        with formatter.section("Settings (flags here, keys in CONFIG.toml)"):
            formatter.write_dl(describe(self.settings()))


class TrainCommand(SettingsCommand):
    """`gpt2 train` with the fields of TrainConfig."""

    def settings(self) -> type[Any]:
        from gpt2.train.config import TrainConfig

        return TrainConfig


@click.command(
    "train",
    cls=TrainCommand,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    options_metavar="",
)
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run, bit for bit.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG.toml] [--KEY VALUE ...]")
def command(resume: str | None, words: tuple[str, ...]) -> None:
    """Train a model on prepared shards.

    Settings come from CONFIG.toml and from flags, flags winning; what you leave out is chosen for this machine
    and written to RUN/config.toml. Ctrl-C saves and says how to go on.

    \b
    Examples:
      gpt2 train --data data --out runs/first
      gpt2 train --data data --out runs/hour --max_seconds 3600 --preset medium
      gpt2 train --data data --out runs/adamw --optimizer adamw --learning_rate 1e-3 --max_steps 2000
      gpt2 train --resume runs/first
      torchrun --nproc-per-node 4 -m gpt2 train --data data --out runs/four --tp 2
      gpt2 train --data data --out runs/tuned --init openai-community/gpt2   # needs network
    """
    from gpt2.distributed.launch import joined
    from gpt2.train import pretrain
    from gpt2.train.config import compose

    with joined() as ranks, silent_elsewhere():
        if resume is not None:
            changes = ranks.attempt(lambda: changes_of_layout(resume, words))
            finish(pretrain.resume(resume, sampler=write_sample, changes=changes))
            return
        path = words[0] if words and not words[0].startswith("-") else None
        flags = words[1:] if path else words
        config = ranks.attempt(lambda: compose(path, flags, **short_settings()))
        finish(pretrain.pretrain(config, sampler=write_sample))


@contextmanager
def silent_elsewhere() -> Iterator[None]:
    """Of several processes the main one alone reports what befell all."""
    from gpt2.distributed.ranks import ToldElsewhere

    try:
        yield
    except ToldElsewhere:
        raise click.exceptions.Exit(EXIT_USER) from None


def changes_of_layout(run: str, words: tuple[str, ...]) -> dict[str, Any]:
    """What a resumed run may be told anew: how its work is laid out, by the names of TrainConfig."""
    from gpt2.config import parse_flags
    from gpt2.train.config import TrainConfig

    if words and not words[0].startswith("-"):
        raise UserError(f"{words[0]}: a resumed run keeps its settings; to change them start anew with --init {run}")
    return parse_flags(TrainConfig, words)


def short_settings() -> dict[str, Any]:
    """A handful of steps where GPT2_SHORT is set, and nothing otherwise."""
    if not os.environ.get("GPT2_SHORT"):
        return {}
    from gpt2.runtime import say

    say(f"GPT2_SHORT is set: {SHORT_STEPS} steps only")
    return {"max_steps": SHORT_STEPS, "batch_tokens": 1024, "eval_tokens": 2000, "eval_every": SHORT_STEPS}


def write_sample(module: GPT, tokenizer: Tokenizer) -> str:
    """Sixty-odd tokens from an empty prompt, the same dice each time."""
    from gpt2.inference.generate import generate
    from gpt2.inference.sampling import SamplingParams

    length = min(64, module.config.context_length - 1)
    return generate(module, tokenizer, [""], SamplingParams(max_new_tokens=length, temperature=0.8, seed=0))[0].text


def finish(finished: Finished) -> None:
    """Say where everything lies; exit with 130 after Ctrl-C, with 0 after SIGTERM, which asked for just that."""
    from gpt2.runtime import say

    if finished.stopped_by == signal.SIGINT:
        raise click.exceptions.Exit(130)
    if finished.stopped_by is None:
        say(f"model:  {finished.folder / 'best'}")
        say(f"report: {finished.folder / 'report.html'}")
        say(f'next:   gpt2 generate --model {quote(str(finished.folder))} "..."')
