"""`gpt2 chat`: a prompt that goes on."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.writing import (
    SETTINGS,
    load_model,
    make_drafter,
    model_options,
    sampling_options,
    sampling_params,
    unescape,
    writing_options,
)
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.tokenizer.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from gpt2.inference.rows import Prompt
    from gpt2.inference.sampling import SamplingParams
    from gpt2.inference.session import Session

HELP = "/reset forgets everything, /quit or Ctrl-D ends, Ctrl-C stops an answer; an empty line lets the model go on"


@click.command(context_settings=SETTINGS)
@model_options
@writing_options
@sampling_options
@click.option(
    "--template",
    metavar="TEXT",
    help=r"What surrounds each of your lines, {} being the line; \n is a line end. Without it: the model's own chat "
    "template where it has one, else nothing.",
)
def command(template: str | None, overflow: str, **flags: Any) -> None:
    """Write with a model in turns, each going on from the last.

    A base model knows no questions and answers: it continues a text. Each line that you type is put, on a new line,
    behind all that was written before, and the model goes on from there. --template and --stop make a dialogue of it.
    A model that was fine-tuned on instructions or messages carries a chat template, and answers by it.
    /reset forgets everything, /quit or Ctrl-D ends, Ctrl-C stops an answer, an empty line lets the model go on. Lines
    from a pipe are taken one by one.

    \b
    Examples:
      gpt2 chat
      gpt2 chat --model runs/my --max-new-tokens 60 --temperature 0.9
      gpt2 chat --model gpt2 --template "Q: {}\\nA:" --stop "\\nQ:"
    """
    template = None if template is None else unescape(template)
    if template is not None and "{}" not in template:
        raise UserError(f"--template {template!r}: has no {{}} where your line goes")
    params = sampling_params(flags)
    model = load_model(flags)
    turns = Turns(template or "{}")
    if template is None and model.tokenizer.chat_template is not None:
        turns = ChatTurns(ChatTemplate.of(model.tokenizer))
        params = replace(params, stop=(*params.stop, *filter(None, [turns.chat.stop])))
    from gpt2.inference.engine import Engine
    from gpt2.inference.rows import check_overflow
    from gpt2.inference.session import Session

    check_overflow(0, model.config.context_length, 1, overflow)  # type: ignore[arg-type]
    engine = Engine(model, 1, make_drafter(flags["draft"], model, 1, flags))
    session = Session(engine, overflow)  # type: ignore[arg-type]
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    if sys.stdin.isatty():
        say(f"{model.folder}. {HELP}")
    talk(session, params, turns)


def talk(session: Session, params: SamplingParams, turns: Turns) -> None:
    """Lines in, answers out, until the input ends."""
    while (line := next_line()) is not None:
        word = line.strip()
        if word == "/quit":
            return
        if word == "/reset":
            session.reset()
            say("forgotten")
        elif word.startswith("/"):
            say(HELP)
        else:
            answer(session, turns.text_of(line, first=not session.tokens), params)


class Turns:
    """What a typed line adds to the transcript: the line in a template, on a line of its own."""

    def __init__(self, template: str) -> None:
        self.template = template

    def text_of(self, line: str, first: bool) -> Prompt:
        """Text or tokens; an empty line adds nothing."""
        if not line:
            return ""
        return ("" if first else "\n") + self.template.replace("{}", line)


class ChatTurns(Turns):
    """The same by a model's chat template: a line is a user's message, what the model writes the answer."""

    def __init__(self, chat: ChatTemplate) -> None:
        self.chat = chat
        self.told: list[Message] = []

    def text_of(self, line: str, first: bool) -> Prompt:
        if not line:
            return ""
        before = [] if first else self.told
        message = {"role": "user", "content": line}
        tokens = self.chat.turn(before, message)
        self.told = [*before, message, {"role": "assistant", "content": "..."}]  # what it will be is in the transcript
        return tokens


def answer(session: Session, text: Prompt, params: SamplingParams) -> None:
    """Print the model's continuation as it comes; Ctrl-C ends it, what does not fit the context is said."""
    try:
        with contextlib.closing(session.stream(text, params)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        say(" [stopped]")
    except UserError as error:
        if not sys.stdin.isatty():
            raise
        say(f"{error}; or /reset")
    print(flush=True)


def next_line() -> str | None:
    """The next typed or piped line without its end; None at the end. Ctrl-C clears the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            say(" (Ctrl-D ends)")
