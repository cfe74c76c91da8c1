"""What the commands that write share: the flags of SamplingParams and of the model, and reading them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gpt2.errors import UserError
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.inference.speculate import Drafter

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

DEFAULTS = SamplingParams()
SEED = click.option("--seed", type=int, help="The same seed gives the same text. Without it each text is new.")
SETTINGS = {"token_normalize_func": lambda name: name.replace("_", "-")}  # --top_k is --top-k


def model_options(command: Command) -> Command:
    """--model, --adapter, --device, --dtype."""
    options = [
        click.option(
            "--model",
            metavar="MODEL",
            help="A model folder, a run's folder (its best, else its last step), or a Hugging Face id such as gpt2. "
            "Without it: GPT2_MODEL, else the newest run here, else GPT-2 from the Hugging Face cache. An adapter's "
            "folder is loaded over the base that it names.",
        ),
        click.option(
            "--adapter",
            metavar="FOLDER",
            help="A LoRA adapter (PEFT's files) over the model; without --model over the base that it names.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option(
            "--dtype", default="float32", show_default=True, help="auto (the fastest here), float32, bfloat16, float16."
        ),
    ]
    return decorate(command, options)


def weights_options(command: Command) -> Command:
    """--weights, --kv: in which form a processor reads the model."""
    options = [
        click.option(
            "--weights",
            default="auto",
            show_default=True,
            metavar="FORMAT",
            help="On a processor: float32, bfloat16, int8, int4, or int4-head (the head in int4 too). auto is int8, "
            "or what the folder holds where that is packed.",
        ),
        click.option(
            "--kv",
            default="auto",
            show_default=True,
            metavar="FORMAT",
            help="Keys and values on a processor: float32, bfloat16 or int8. auto is float32 beside float32 weights, "
            "else bfloat16.",
        ),
    ]
    return decorate(command, options)


def writing_options(command: Command) -> Command:
    """--weights, --kv, --draft: how a text is written, not what."""
    options = [
        weights_options,
        click.option(
            "--draft",
            default="none",
            show_default=True,
            metavar="lookup|MODEL|none",
            help="Guess several tokens and check them at once, which changes no text: lookup guesses that the text "
            "repeats itself or its prompt; a MODEL is a smaller one with the same tokenizer.",
        ),
    ]
    return decorate(command, options)


def sampling_options(command: Command) -> Command:
    """One flag for each field of SamplingParams that means the same everywhere, and --overflow."""
    return drawing_options(DEFAULTS)(ending_options(command))


def drawing_options(defaults: SamplingParams) -> Decorator[Any]:
    """How many tokens are written and how each is chosen, with these defaults."""

    def setting(name: str, kind: type, text: str) -> Decorator[Any]:
        return click.option(
            f"--{name.replace('_', '-')}", type=kind, default=getattr(defaults, name), show_default=True, help=text
        )

    options = [
        setting("max_new_tokens", int, "The most tokens to write."),
        setting("temperature", float, "Below 1 likelier, above 1 wilder; 0 always takes the likeliest token."),
        setting("top_k", int, "Choose among so many likeliest tokens; 0 is off."),
        setting("top_p", float, "Choose among the likeliest tokens that together have this probability; 1 is off."),
        setting("min_p", float, "Leave out tokens less than so many times as likely as the likeliest; 0 is off."),
        setting("repetition_penalty", float, "Make every token of prompt and answer less likely; 1 is off."),
        setting("presence_penalty", float, "Subtracted from a token's logit once it was written; 0 is off."),
        setting("frequency_penalty", float, "Subtracted for every time that it was written; 0 is off."),
    ]
    return lambda command: decorate(command, options)


def ending_options(command: Command) -> Command:
    """Where a text ends but for its length, its seed, and --overflow."""
    options = [
        click.option(
            "--stop",
            multiple=True,
            metavar="TEXT",
            callback=lambda context, parameter, texts: tuple(map(unescape, texts)),
            help=r"End before this text; may be given several times. \n is a line end, \t a tab.",
        ),
        click.option("--ignore-eot", is_flag=True, help="Go on writing past end-of-text."),
        SEED,
        click.option(
            "--overflow",
            default="slide",
            show_default=True,
            metavar="slide|stop|error",
            help="Past the model's context: go on with the last half of it, stop there, or refuse beforehand.",
        ),
    ]
    return decorate(command, options)


def sampling_params(flags: dict[str, Any]) -> SamplingParams:
    """The settings among a command's flags, checked."""
    names = {field.name for field in fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in flags.items() if name in names})


def load_model(flags: dict[str, Any], beside: Sequence[str] = ()) -> Model:
    """The model that the flags name, with --adapter in it, or with several adapters beside it."""
    from gpt2 import api

    if beside and flags["adapter"] is not None:
        raise UserError(f"--adapter {flags['adapter']}: prompts of the file name adapters of their own; leave it out")
    adapter = beside or flags["adapter"]
    return api.load(flags["model"], flags["device"], flags["dtype"], flags["weights"], flags["kv"], adapter)


def make_drafter(draft: str, model: Model, streams: int, flags: dict[str, Any]) -> Drafter | None:
    """Whoever guesses, by --draft; UserError for a smaller model of another tokenizer."""
    if draft == "none":
        return None
    from gpt2.inference.speculate import PromptLookup, SmallerModel

    if draft == "lookup":
        return PromptLookup()
    smaller = load_model(flags | {"model": draft, "weights": "auto", "adapter": None})
    if smaller.tokenizer.hash != model.tokenizer.hash:
        raise UserError(f"--draft {draft}: its tokenizer is another than the model's; take one of the same family")
    return SmallerModel(smaller.runner(streams))


def named(name: str) -> bool:
    """Whether the user gave this parameter, be it with its default's value."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def unescape(text: str) -> str:
    r"""Read \n, \t and \\ as shells hand them over; any other backslash is itself."""
    meanings = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda match: meanings[match[0]], text)


def decorate(command: Command, options: Sequence[Decorator[Any]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
