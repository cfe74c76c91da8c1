"""`gpt2 write`: stories and other texts that go on from a prompt, drawn as GPT-2's samples were."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.generate import Printer, make_engine, print_all, read_prompt
from gpt2.cli.verbs import ending, make_asker, shorter, shots_options
from gpt2.cli.writing import (
    SETTINGS,
    drawing_options,
    ending_options,
    load_model,
    model_options,
    sampling_params,
    writing_options,
)
from gpt2.evaluate.verbs import WRITE
from gpt2.inference.rows import Text
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.inference.rows import Prompt


@click.command(context_settings=SETTINGS)
@click.argument("prompt", required=False)
@model_options
@writing_options
@drawing_options(WRITE.writing.params())
@ending_options
@shots_options
def command(prompt: str | None, **flags: Any) -> None:
    """Write a text that goes on from a prompt.

    As the samples of GPT-2's paper were drawn: from the 40 likeliest tokens at temperature 1; the length is half of the
    model's context, as in OpenAI's script. `gpt2 generate` does the same with more to choose. With --shots the model
    first reads texts like the one it is to write: "prompt" (or "input") and "completion" (or "output") on each line. A
    model that was tuned on dialogues is asked in its own form. The prompt is shown before the text on a terminal only;
    without one, or with -, it is read from standard input.

    \b
    Examples:
      gpt2 write "In a shocking finding, scientists discovered"
      gpt2 write --model runs/my --max-new-tokens 40 --seed 1 "The ship"
      gpt2 write --model runs/my --shots shots.jsonl --max-new-tokens 20 "sea"
      echo "Once upon a time" | gpt2 write --max-new-tokens 60
    """
    params = sampling_params(flags)
    text = read_prompt(prompt)
    model = load_model(flags)
    params = shorter(params, model)
    words, params = prompt_for(text, model, params, flags)
    Text(model.config, model.tokenizer, words, params, flags["overflow"])  # refuses before weights are read
    engine = make_engine(model, 1, flags)
    shown = text if sys.stdout.isatty() and isinstance(words, str) else ""
    print_all(model, engine.stream([words], params, flags["overflow"]), Printer(shown, 1), engine)


def prompt_for(text: str, model: Model, params: SamplingParams, flags: dict[str, Any]) -> tuple[Prompt, SamplingParams]:
    """What the model reads: the text itself, or examples and turns around it; and where it then stops."""
    asked = any(flags[name] is not None for name in ("shots", "k", "template"))
    if not (asked or model.tokenizer.chat_template):
        return text, params
    asker = make_asker(WRITE, model, params.max_new_tokens, flags | {"long": "error"})
    (prompt,) = asker.prompts({"prompt": text})
    return prompt.ids, ending(params, asker)
