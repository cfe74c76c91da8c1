"""Texts against their references: SQuAD's exact match and F1, BLEU through sacrebleu, ROUGE through rouge-score."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from gpt2.errors import UserError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
MARKS = re.compile(r"[.!?]+[\"')\]”’»]*(?= |$)")  # what a sentence may end with, in a text with single spaces
NEAR = 80  # characters on either side of a mark that are looked at
OPENING = "\"'([“‘«"
DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")  # U.S, a.m, e.g: the last point is the mark
# fmt: off
# what stands before a name or in the middle of a clause, in English, French, German, Spanish, Italian
ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "messrs", "mx", "dr", "drs", "prof", "rev", "hon", "sr", "jr", "st", "ste", "mt", "ft",
    "gen", "lt", "col", "maj", "capt", "cpt", "cmdr", "sgt", "cpl", "adm", "brig", "gov", "pres", "rep", "reps",
    "sen", "sens", "supt", "insp", "vs", "cf", "al", "approx", "dept", "mme", "mmes", "mlle", "hr", "bzw", "ca",
    "vgl", "evtl", "sog", "sra", "srta", "ud", "uds", "dott", "sig",
))
# what stands before a number: anything else there begins a sentence
COUNTED = frozenset((
    "no", "nos", "nr", "num", "núm", "vol", "vols", "fig", "figs", "p", "pp", "sec", "art", "ch", "cap", "op",
    "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
))
# fmt: on


def normalize(text: str) -> str:
    """As SQuAD's and TriviaQA's scripts do: lower case, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(text: str, references: Sequence[str]) -> float:
    """1 if it is one of the references after `normalize`, else 0."""
    return float(normalize(text) in {normalize(reference) for reference in references})


def verbatim(text: str, references: Sequence[str]) -> float:
    """1 if it is one of the references but for white space around it, else 0."""
    return float(text.strip() in {reference.strip() for reference in references})


def as_harness(text: str, references: Sequence[str]) -> float:
    """1 if it is one of the references but for case and punctuation, else 0 (lm-evaluation-harness' exact_match)."""
    plain = text.lower().translate(PUNCTUATION)
    return float(plain in {reference.lower().translate(PUNCTUATION) for reference in references})


def f1(text: str, references: Sequence[str]) -> float:
    """The best F1 of words with a reference; two texts that are both without words agree."""
    return max(word_f1(normalize(text).split(), normalize(reference).split()) for reference in references)


def word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold))


def left_out(score: Callable[[str, Sequence[str]], float], text: str, references: Sequence[str]) -> float:
    """The mean of the score against all references but one, as CoQA's script has it, so that people fare no better."""
    if len(references) < 2:
        return score(text, references)
    return sum(score(text, [*references[:n], *references[n + 1 :]]) for n in range(len(references))) / len(references)


def drop_scores(text: str, references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """DROP's exact match and F1 with the best reference; each of these is one or several spans."""
    return max((drop_exact(text, spans), drop_f1(text, spans)) for spans in references)


def drop_exact(text: str, spans: Sequence[str]) -> float:
    """1 if it is the only span: a text is one span, so it is never several."""
    return float({drop_text(span) for span in spans} == {drop_text(text)} and len(spans) == 1)


def drop_f1(text: str, spans: Sequence[str]) -> float:
    """F1 of bags of words; 0 where the reference has numbers and the text none of them. A text is one span."""
    words, bags = set(drop_text(text).split()), [set(drop_text(span).split()) for span in spans]
    best = max(bag_f1(words, bag) for bag in bags)
    return round(best / len(bags), 2)


def bag_f1(words: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if is_number(word)}
    if numbers and not numbers & words:
        return 0.0
    common = len(words & gold)
    return 2 * common / (len(words) + len(gold)) if common else 0.0


def drop_text(text: str) -> str:
    """DROP's normalisation: as SQuAD's, but numbers are compared as numbers, and hyphens part words."""
    words = []
    for word in re.split(" |-", text.lower()):
        word = word if is_number(word) else word.translate(PUNCTUATION)
        word = str(float(word)) if is_number(word) else ARTICLES.sub(" ", word)
        words += word.split()
    return " ".join(words)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def bleu_sums(text: str, references: Sequence[str], tokenize: str = "13a") -> tuple[float, ...]:
    """What BLEU is made of: matching and all n-grams of 1 to 4 words, length, reference's length (sacrebleu)."""
    found = bleu_scorer(tokenize).corpus_score([text], [[reference] for reference in references])
    return (*found.counts, *found.totals, found.sys_len, found.ref_len)


def rouge(text: str, reference: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and summary-level ROUGE-L (sentences on lines), with stemming (rouge-score)."""
    found = rouge_scorer().score(reference, text)
    return {
        "rouge1": found["rouge1"].fmeasure,
        "rouge2": found["rouge2"].fmeasure,
        "rougeL": found["rougeLsum"].fmeasure,
    }


@cache
def bleu_scorer(tokenize: str) -> Any:
    """UserError where sacrebleu is not installed."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError("BLEU needs sacrebleu: pip install 'gpt2[eval]'") from None
    return BLEU(tokenize=tokenize)


@cache
def rouge_scorer() -> Any:
    """UserError where rouge-score is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE needs rouge-score: pip install 'gpt2[eval]'") from None
    return RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def sentences(text: str) -> list[str]:
    """Its sentences, with single spaces; a sentence ends in . ! or ? and white space, but not behind `Mr.`."""
    text = " ".join(text.split())
    cased, start, found = text != text.lower(), 0, []
    for mark in MARKS.finditer(text):
        before, after = text[max(start, mark.start() - NEAR) : mark.start()], text[mark.end() + 1 : mark.end() + NEAR]
        if after and ends_sentence(before, mark[0], after.lstrip(OPENING), cased):
            found.append(text[start : mark.end()])
            start = mark.end() + 1
    return [*found, text[start:]] if text[start:] else found


def ends_sentence(before: str, mark: str, after: str, cased: bool) -> bool:
    """Whether a mark ends the sentence whose last words are `before`; `after` are those that follow.

    It does not behind an abbreviation or an initial, nor where nothing but a number was before it, nor, in a text that
    has capital letters, before a small one.
    """
    if not any(letter.isalpha() for letter in before) or (cased and after[:1].islower()):
        return False
    if mark.rstrip("\"')]”’»") != ".":
        return True
    word = before.rsplit(" ", 1)[-1].lstrip(OPENING)
    initial = len(word) == 1 and word.isupper() and word != "I"
    counted = after[:1].isdigit() and word.lower() in COUNTED
    return not (initial or counted or DOTTED.fullmatch(word) or word.lower() in ABBREVIATIONS)


def first_sentences(text: str, count: int) -> str:
    """The first sentences, one a line, as ROUGE wants them."""
    return "\n".join(sentences(text)[:count])
