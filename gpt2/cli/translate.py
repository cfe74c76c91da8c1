"""`gpt2 translate`: sentence by sentence after examples, as GPT-2's paper asked for it."""

from __future__ import annotations

from typing import Any

import click

from gpt2.cli.verbs import ending, make_asker, read_input, scorer_for, shorter, verb_options, verb_params
from gpt2.cli.writing import SETTINGS, load_model
from gpt2.errors import UserError
from gpt2.evaluate.asked import LINE
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.verbs import language, own_sentences, translate


@click.command(context_settings=SETTINGS)
@click.argument("file", required=False, default="-")
@click.option("--from", "source", required=True, metavar="CODE", help="The text's language, as en.")
@click.option("--to", "target", required=True, metavar="CODE", help="The language to translate it to, as fr.")
@verb_options(LINE.params())
def command(file: str, source: str, target: str, **flags: Any) -> None:
    """Translate a text, line by line and sentence by sentence.

    As in section 3.7 of GPT-2's paper: lines "english sentence = french sentence" as examples, then "sentence =",
    greedily, and of what is written the first sentence. Without FILE, or with -, the text is read from standard input.

    The examples are five sentences of our own between en, fr, de and es, as the paper's are not published; --shots
    gives others, and must for any other language: {"en": "...", "ro": "..."} on each line, named as in --from and --to
    (or input and output). A model that was tuned on dialogues is asked in its own form and needs none.

    The paper's largest model reached 5 BLEU from English to French and 11.5 back: expect mistakes. A sentence that the
    context cannot hold is cut (--long walk: translated in pieces).

    \b
    Examples:
      echo "The sea is calm." | gpt2 translate --from en --to fr
      gpt2 translate --from en --to de --model runs/my --max-new-tokens 20 - < prompts.jsonl
      gpt2 translate --from French --to English --shots shots.jsonl --max-new-tokens 20 -
      gpt2 translate --from fr --to en --model gpt2-xl lettre.txt # needs network
    """
    from gpt2.evaluate.answering import translated

    if source.lower() == target.lower():
        raise UserError(f"--from {source} --to {target}: the same language")
    params = verb_params(flags, greedy=True)
    text = read_input(file)
    model = load_model(flags)
    asked_otherwise = flags["shots"] or flags["template"] is not None or model.tokenizer.chat_template
    own = [] if asked_otherwise else own_examples(source, target)  # the built-in ones are in the paper's words
    params = shorter(params, model)
    asker = make_asker(translate(source, target), model, params.max_new_tokens, flags, own)
    scorer = scorer_for(model, text.count("\n") + text.count(". ") + 1)
    for line in translated(scorer, asker, text, ending(params, asker)):
        print(line, flush=True)


def own_examples(source: str, target: str) -> list[Example]:
    """The built-in sentences; UserError where there are none in a language."""
    found = own_sentences(source, target)
    for code in (source, target):
        if not found and code.lower() not in ("en", "fr", "de", "es"):
            raise UserError(
                f"{code}: no example sentences in {language(code)} here (there are en, fr, de, es); give some with "
                "--shots FILE"
            )
    return found
