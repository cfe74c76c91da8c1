"""`gpt2 summarize`: a text in three sentences, as GPT-2's paper asked for it."""

from __future__ import annotations

from typing import Any

import click

from gpt2.cli.verbs import ask, ending, make_asker, read_input, scorer_for, shorter, verb_options, verb_params
from gpt2.cli.writing import SETTINGS, load_model
from gpt2.evaluate.verbs import SUMMARIZE


@click.command(context_settings=SETTINGS)
@click.argument("file", required=False, default="-")
@verb_options(SUMMARIZE.writing.params())
def command(file: str, **flags: Any) -> None:
    """Summarize a text in three sentences.

    As in section 3.6 of GPT-2's paper: the text, then "TL;DR:", 100 tokens drawn from the two likeliest, and of these
    the first three sentences. Without FILE, or with -, the text is read from standard input. In --shots a text may be
    "input", "prompt", "article", "text" or "document", its summary "output", "completion", "summary" or "highlights".

    A model that was tuned on dialogues (its folder has a chat template) is asked in its own form instead. A base model
    of any size summarizes badly: in the paper hardly better than three sentences taken at random.

    \b
    Examples:
      gpt2 summarize held-out.txt
      head -c 2000 held-out.txt | gpt2 summarize --model runs/my --long walk --max-new-tokens 20 > summaries.txt
      gpt2 summarize --model gpt2-xl article.txt # needs network
    """
    from gpt2.evaluate.answering import written

    params = verb_params(flags, greedy=False)
    text = read_input(file)
    model = load_model(flags)
    params = shorter(params, model)
    asker = make_asker(SUMMARIZE, model, params.max_new_tokens, flags)
    prompts = ask(asker, {"article": text})
    scorer = scorer_for(model, len(prompts))
    for summary in written(scorer, prompts, ending(params, asker)):
        print(asker.verb.clean(summary), flush=True)
