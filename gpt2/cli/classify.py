"""`gpt2 classify`: which label fits a text, by likelihood, or by the head of a model that was tuned for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.verbs import ask, long_option, make_asker, read_input, scorer_for, shots_options
from gpt2.cli.writing import SETTINGS, load_model, model_options, named, weights_options
from gpt2.errors import UserError
from gpt2.evaluate.verbs import classify
from gpt2.runtime import pick_device, pick_dtype

if TYPE_CHECKING:
    from gpt2.api import Model

Valued = Callable[[Sequence[str]], list[dict[str, float]]]  # texts -> each one's labels with their values
AT_ONCE = 64


@click.command(context_settings=SETTINGS)
@click.argument("file", required=False, default="-")
@click.option("--labels", metavar="A,B,...", help="The labels to choose from; a tuned classifier has its own.")
@click.option("--lines", is_flag=True, help="Each line is a text of its own, and gets a line with its label.")
@click.option(
    "--by",
    type=click.Choice(("token", "sum", "character", "answer")),
    default="token",
    show_default=True,
    help='How labels are compared: log-likelihood per token, in sum, per character, or against that after "Answer:".',
)
@click.option("--json", "as_json", is_flag=True, help='{"label": ..., "scores": {...}} for each text, in nats.')
@model_options
@weights_options
@click.option("--seed", type=int, help="With --shots: which of them are shown, and in which order [0].")
@shots_options
@long_option
def command(file: str, labels: str | None, lines: bool, as_json: bool, **flags: Any) -> None:
    """Choose the label that fits a text.

    A model with a head for labels (gpt2 finetune on labelled texts) uses it. Any other is asked zero-shot, in the form
    of GPT-3's paper: the text, then "question: a, b, or c?" and "answer:", and the label is taken that is likeliest to
    follow, per token; --by answer divides by its likelihood after "Answer:" alone, as the paper does where some labels
    are likelier than others anyway. --shots shows solved texts first: "text" and "label" on each line.

    Without FILE, or with -, the text is read from standard input. Of a long text --long walk compares the mean over all
    pieces. A small base model chooses hardly better than by chance.

    \b
    Examples:
      gpt2 classify --labels "sea,land" held-out.txt
      gpt2 classify --labels positive,negative --by answer --json --model runs/my --lines prompts.jsonl
      echo "I liked it." | gpt2 classify --labels positive,negative
      gpt2 classify --model gpt2-xl --labels sports,politics,science --lines headlines.txt # needs network
    """
    text = read_input(file)
    texts = [line.strip() for line in text.split("\n") if line.strip()] if lines else [text]
    wanted = None if labels is None else read_labels(labels)
    model = load_model(flags)
    valued = by_head(model, wanted, texts, flags) or by_likelihood(model, wanted, texts, flags)
    for start in range(0, len(texts), AT_ONCE):
        for values in valued(texts[start : start + AT_ONCE]):
            label = max(values, key=lambda name: values[name])
            print(json.dumps({"label": label, "scores": values}, ensure_ascii=False) if as_json else label, flush=True)


def read_labels(text: str) -> list[str]:
    """Names apart by commas, at least two."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(found) < 2:
        raise UserError(f"--labels {text!r}: at least two names, apart by commas, as positive,negative")
    if len(set(found)) < len(found):
        raise UserError(f"--labels {text}: one of them is there twice")
    return found


def by_head(model: Model, wanted: Sequence[str] | None, texts: Sequence[str], flags: dict[str, Any]) -> Valued | None:
    """By the model's own head, where it has one; UserError for what that has no use for."""
    import torch

    from gpt2.checkpoint.classifier import is_classifier, read_classifier
    from gpt2.evaluate.answering import Head

    folder = model.adapter.folder if model.adapter else model.folder
    assert folder is not None
    if not is_classifier(folder):
        return None
    for name in filter(named, ("by", "shots", "k", "template", "weights", "kv", "seed")):
        raise UserError(f"--{name}: {folder} has a head for labels, which has no use for it; leave it out")
    classifier = read_classifier(folder, model.folder if model.adapter else None)
    if wanted is not None and set(wanted) != set(classifier.labels):
        raise UserError(f"--labels: {folder} was tuned for {', '.join(classifier.labels)}; leave --labels out")
    device = pick_device(model.device)
    classifier.module.to(device=device, dtype=getattr(torch, pick_dtype(model.dtype, device)))
    head = Head(classifier, model.tokenizer, flags["long"])
    head.tell_long(texts)
    return head


def by_likelihood(model: Model, labels: Sequence[str] | None, texts: Sequence[str], flags: dict[str, Any]) -> Valued:
    """By how likely each label is as an answer."""
    from gpt2.evaluate.answering import Likelihoods, tell_long

    if flags["seed"] is not None and flags["shots"] is None:
        raise UserError("--seed: nothing is drawn without examples; add --shots FILE, or leave it out")
    if labels is None:
        raise UserError(f"--labels: which? {model.folder} has no head for labels; as --labels positive,negative")
    room = max(len(model.tokenizer.encode(f" {label}")) for label in labels)
    asker = make_asker(classify(labels), model, room, flags)
    ask(asker, {"text": texts[0]})  # refuses before weights are read, and says what is left out
    if len(texts) > 1:
        tell_long(asker, [{"text": text} for text in texts], "texts")
    scorer, compare = scorer_for(model, len(texts) * len(labels)), Likelihoods(labels, flags["by"])
    return lambda some: compare(scorer, asker, [asker.prompts({"text": text}) for text in some])
