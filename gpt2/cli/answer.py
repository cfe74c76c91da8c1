"""`gpt2 answer`: a question about a text, or from memory, as GPT-2's paper asked it."""

from __future__ import annotations

from typing import Any

import click

from gpt2.cli.verbs import ask, ending, make_asker, read_input, scorer_for, shorter, verb_options, verb_params
from gpt2.cli.writing import SETTINGS, load_model, named
from gpt2.errors import UserError
from gpt2.evaluate.verbs import ANSWER, CLOSED_BOOK
from gpt2.runtime import say


@click.command(context_settings=SETTINGS)
@click.argument("question")
@click.option("--context", metavar="FILE", help="The text that the question is about; - is standard input.")
@verb_options(ANSWER.writing.params())
def command(question: str, context: str | None, **flags: Any) -> None:
    """Answer a question, about a text or from memory.

    As in section 3.5 of GPT-2's paper: the text, pairs of question and answer, the question and "A:", greedily, one
    line. In --shots each line has "question" and "answer" (or "input" and "output"): they are asked about the same
    text, or each has a "context" of its own. Without --context the model answers from memory, as in section 3.8: there
    the paper shows example pairs first, so give some with --shots.

    Of a text that is too long --long cut reads the beginning; with walk the question is asked of each piece, and the
    answer whose tokens the model finds likeliest on average is taken. A model always answers something.

    \b
    Examples:
      gpt2 answer --context held-out.txt "How many men sang?"
      gpt2 answer --model runs/my --context held-out.txt --long walk --max-new-tokens 8 "How many men sang?"
      gpt2 answer --model runs/my --shots shots.jsonl "What is the sea?"
      gpt2 answer --model gpt2-xl --shots pairs.jsonl "Who wrote the book the origin of species?" # needs network
    """
    from gpt2.evaluate.answering import surest

    params = verb_params(flags, greedy=True)
    if not question.strip():
        raise UserError("QUESTION: empty")
    if context is None and named("long"):
        raise UserError("--long: of which text? add --context FILE")
    item = {"question": question.strip()}
    if context is not None:
        item["context"] = read_input(context)
    model = load_model(flags)
    params = shorter(params, model)
    asker = make_asker(ANSWER if context is not None else CLOSED_BOOK, model, params.max_new_tokens, flags)
    prompts = ask(asker, item)
    scorer = scorer_for(model, len(prompts))
    found = surest(scorer, asker, prompts, ending(params, asker))
    if not found:
        say("no answer: the model ends the line at once")
    print(found, flush=True)
