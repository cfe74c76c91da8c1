"""How what a model wrote is set against references: each gives metrics with the sums of one item."""

from __future__ import annotations

from functools import partial

from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures import ByLibrary, mean
from gpt2.evaluate.metrics import (
    as_harness,
    bleu_scorer,
    bleu_sums,
    drop_scores,
    exact,
    f1,
    first_sentences,
    left_out,
    rouge,
    rouge_scorer,
)

Scored = dict[str, tuple[str, tuple[float, ...]]]

BEAMS = Writing(32, ("\n",), beams=4)
UNANSWERABLE = "unanswerable"


def by_exact(text: str, item: Fields) -> Scored:
    return {"em": mean(exact(text, item["answers"]))}


def by_aliases(text: str, item: Fields) -> Scored:
    """TriviaQA's in lm-evaluation-harness: articles count, and the answer itself only if it is among the aliases."""
    return {"em": mean(as_harness(text, item["aliases"]))}


def by_f1(text: str, item: Fields) -> Scored:
    return {"f1": mean(f1(text, item["answers"])), "em": mean(exact(text, item["answers"]))}


def by_f1_left_out(text: str, item: Fields) -> Scored:
    """Each reference in turn stands for a person who is compared with the others."""
    return {"f1": mean(left_out(f1, text, item["answers"])), "em": mean(left_out(exact, text, item["answers"]))}


def by_drop(text: str, item: Fields) -> Scored:
    matched, overlap = drop_scores(text, item["spans"])
    return {"f1": mean(overlap), "em": mean(matched)}


def by_bleu(tokenize: str) -> ByLibrary:
    """BLEU of the corpus, in the tokens that sacrebleu calls so (`13a`, `intl`)."""

    def score(text: str, item: Fields) -> Scored:
        return {"bleu": ("bleu", bleu_sums(text, item["answers"], tokenize))}

    return ByLibrary(score, partial(bleu_scorer, tokenize), f"sacrebleu, tokens {tokenize}")


def rouge_of_three(text: str, item: Fields) -> Scored:
    """ROUGE of the first three sentences, and the mean of its three figures."""
    found = rouge(first_sentences(text, 3), item["answers"][0])
    found = {"rouge_average": sum(found.values()) / 3, **found}
    return {name: mean(value) for name, value in found.items()}


by_rouge = ByLibrary(rouge_of_three, rouge_scorer, "rouge-score, with stemming")


def by_squad(text: str, item: Fields) -> Scored:
    """No answer, or the word for it, is right where people gave none."""
    if item["answers"] == [UNANSWERABLE]:
        right = float(text.strip().lower().rstrip(".") in ("", UNANSWERABLE))
        return {"f1": mean(right), "em": mean(right)}
    return by_f1(text, item)
