"""The command `gpt2`: finds the command, runs it, and turns whatever goes wrong into one line and an exit code.

Nothing heavy is imported here, and a command's module only when that command runs: `gpt2 --help` has to answer
at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import click

from gpt2.errors import UserError, did_you_mean

# name -> (module that defines `command`, first sentence of that command's help, the same word for word)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("gpt2.cli.demo", "Train a small model on this Python's library and let it write"),
    "prepare": ("gpt2.cli.prepare", "Turn text into shards of tokens"),
    "plan": ("gpt2.cli.plan", "Show what a training run would hold, take and cost, without its hardware"),
    "train": ("gpt2.cli.train", "Train a model on prepared shards"),
    "finetune": ("gpt2.cli.finetune", "Teach a model your task from a file of examples"),
    "merge": ("gpt2.cli.merge", "Make one model of an adapter and its base"),
    "scale": (
        "gpt2.cli.scale",
        "Fit the power law of loss against compute with small models, and hold a larger one to it",
    ),
    "runs": ("gpt2.cli.runs", "List and compare runs"),
    "generate": ("gpt2.cli.generate", "Let a model continue a prompt"),
    "chat": ("gpt2.cli.chat", "Write with a model in turns, each going on from the last"),
    "summarize": ("gpt2.cli.summarize", "Summarize a text in three sentences"),
    "translate": ("gpt2.cli.translate", "Translate a text, line by line and sentence by sentence"),
    "answer": ("gpt2.cli.answer", "Answer a question, about a text or from memory"),
    "write": ("gpt2.cli.write", "Write a text that goes on from a prompt"),
    "classify": ("gpt2.cli.classify", "Choose the label that fits a text"),
    "evaluate": (
        "gpt2.cli.evaluate",
        "Measure a model on benchmarks, by the papers' protocols or lm-evaluation-harness's",
    ),
    "overlap": ("gpt2.cli.overlap", "Tell how much of a test set a training set holds"),
    "quantize": ("gpt2.cli.quantize", "Make a folder with smaller weights, for writing on a processor"),
    "inspect": ("gpt2.cli.inspect", "Show what is inside a model: sizes, predictions, activations"),
    "doctor": ("gpt2.cli.doctor", "Show what this machine has, how fast it is, and what is missing"),
}
SAVING = "saving"  # the thread of train/background.py
EXIT_BUG, EXIT_USER, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class LazyGroup(click.Group):
    """A group that lists its commands from COMMANDS and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and is_prompt(args):
            return "generate", self.get_command(ctx, "generate"), args
        if args[0] not in COMMANDS:
            near = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no such command '{args[0]}'{near}; a prompt of several words needs quotes", ctx)
        return super().resolve_command(ctx, args)


def is_prompt(args: Sequence[str]) -> bool:
    """Whether words that name no command are a prompt: it holds a space, or stands alone and is no mistyped command."""
    first, rest = args[0], args[1:]
    alone = not rest or rest[0].startswith("-")
    return any(c.isspace() for c in first) or (alone and not did_you_mean(first, COMMANDS))


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from gpt2 import __version__

        click.echo(f"gpt2 {__version__}")
        ctx.exit()


@click.group("gpt2", cls=LazyGroup, invoke_without_command=True)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error (or set GPT2_DEBUG=1).")
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """GPT-2 and GPT-3 whole: from plain text to a trained model that writes.

    \b
    Examples:
      gpt2 demo                                   # train and write: no flags, no network
      gpt2 "Once upon a time"                     # the newest model goes on from there
      gpt2 prepare my.txt --out data              # text to tokens
      gpt2 train --data data --out runs/my        # tokens to a model
      gpt2 generate --model runs/my "The sea"     # a model to text
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for what the user can mend, 1 for a bug, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _never_fail_to_print()
    try:
        return _run(words)
    except BrokenPipeError:
        _let_go_of_stdout()
        return EXIT_PIPE
    except (KeyboardInterrupt, click.Abort):
        return _leave(_report("interrupted", EXIT_INTERRUPTED))
    except Exception as error:
        if _wants_debug(words):
            traceback.print_exc()
        return _report(*explain(error))


def _run(words: list[str]) -> int:
    try:
        with cli.make_context("gpt2", words.copy()) as ctx:
            result = cli.invoke(ctx)
    except click.exceptions.Exit as stop:
        result = stop.exit_code
    sys.stdout.flush()  # a full disk or a closed pipe behind stdout shows here at the latest
    return result if isinstance(result, int) else 0


def explain(error: Exception) -> tuple[str, int]:
    """The one line that tells the user about an exception, and the exit code."""
    if isinstance(error, UserError):
        return str(error), EXIT_USER
    if isinstance(error, click.ClickException):
        return _usage(error), EXIT_USER
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{(error.strerror or type(error).__name__).lower()}", EXIT_USER
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("gpt2"):
        return f"the Python module '{error.name}' is not installed; gpt2 doctor says how to get it", EXIT_USER
    return f"{type(error).__name__}: {error}; for the traceback run it again as: gpt2 --debug ...", EXIT_BUG


def _usage(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    text = error.message
    if isinstance(error, click.NoSuchOption):
        flags = [flag for param in ctx.command.params for flag in param.opts] if ctx else []
        text = f"no such option '{error.option_name}'{did_you_mean(error.option_name, flags)}"
        if ctx and ctx.parent is None:
            text += "; options come after the command or the prompt"
    else:
        text = error.format_message().rstrip(".")
    return f"{text}; see {ctx.command_path} --help" if ctx else text


def _report(message: str, code: int) -> int:
    print("gpt2:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code


def _leave(code: int) -> int:
    """The code; where a checkpoint is still being written (train/background.py), the process ends here instead.

    Python would end that thread in the midst of torch's C++, which takes the process with it: "terminate called".
    """
    if any(thread.name == SAVING for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)
    return code


def _wants_debug(words: Sequence[str]) -> bool:
    before_the_command = itertools.takewhile(lambda word: word.startswith("-"), words)
    return os.environ.get("GPT2_DEBUG", "0") not in ("", "0") or "--debug" in before_the_command


def _never_fail_to_print() -> None:
    """A console that is not UTF-8 shows `?` for what it lacks; it must not kill a run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="replace")


def _let_go_of_stdout() -> None:
    """The reader of our pipe has gone: keep Python from complaining about it once more on exit."""
    with contextlib.suppress(OSError, ValueError):  # under test stdout is not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
