"""Standard errors and figures that are functions of sums, against closed forms and other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpt2.evaluate.metrics import (
    bleu_sums,
    drop_scores,
    exact,
    f1,
    first_sentences,
    left_out,
    normalize,
    rouge,
    sentences,
)
from gpt2.evaluate.statistics import Column, macro_f1, perplexity


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    dice = np.random.default_rng(1)
    hits = (dice.random(400) < 0.3).astype(float)
    column = Column("mean", [(float(hit), 1.0) for hit in hits])
    assert column.value == hits.mean()
    assert column.standard_error(0) == pytest.approx(hits.std() / math.sqrt(400), rel=0.1)
    assert column.standard_error(0) == column.standard_error(0) != column.standard_error(1)


def test_a_single_item_has_no_standard_error() -> None:
    assert Column("mean", [(1.0, 1.0)]).standard_error(0) is None


def test_perplexity_is_of_all_units_together() -> None:
    column = Column("perplexity", [(2.0, 1.0), (4.0, 3.0)])
    assert column.value == pytest.approx(math.exp(6 / 4))
    assert perplexity((1e9, 1.0)) < math.inf


def test_macro_f1_is_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    dice = np.random.default_rng(2)
    gold, guessed = dice.integers(0, 3, 50), dice.integers(0, 3, 50)
    cells = np.zeros((3, 3))
    for a, b in zip(gold, guessed, strict=True):
        cells[a, b] += 1
    assert macro_f1(cells.ravel().tolist()) == pytest.approx(metrics.f1_score(gold, guessed, average="macro"))


def test_bleu_of_sums_is_sacrebleu_s_of_the_corpus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["the cat sat on the mat .", "he went to the market today", "no"]
    references = ["the cat sat on a mat .", "he goes to the market today", "yes it is"]
    column = Column("bleu", [bleu_sums(text, [reference]) for text, reference in zip(texts, references, strict=True)])
    assert column.value * 100 == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)


def test_rouge_is_rouge_score_s_and_sums_sentences_up() -> None:
    pytest.importorskip("rouge_score")
    assert rouge("a cat sat", "a cat sat") == pytest.approx({"rouge1": 1, "rouge2": 1, "rougeL": 1})
    found = rouge("b c\nx y", "x y\nb c")  # the order of sentences does not matter to the summary's L
    assert found["rougeL"] == 1.0 and found["rouge2"] < 1.0
    assert first_sentences('He said "no." Then 3.5 m.\n\nGone! More', 3) == 'He said "no."\nThen 3.5 m.\nGone!'
    assert first_sentences("no end", 3) == "no end"


@pytest.mark.parametrize(
    "one",
    [
        "Mr. Obama met the U.S. envoy.",
        "J. K. Rowling and Dr. Strange (a.k.a. Stephen) met in the U.S. Senate.",
        "He came at 5 p.m. and left.",
        '"Stop!" he said.',
        "It cost approx. 5 dollars, see Fig. 3 and No. 7.",
        "M. Dupont habite à St. Malo.",
        "Hr. Braun kommt bzw. Frau Grün.",
        "1. Wash the pan.",
        "Well... yes.",
    ],
)
def test_an_abbreviation_does_not_end_a_sentence(one: str) -> None:
    assert sentences(f"{one} Then  came\nanother!") == [one, "Then came another!"]


def test_sentences_end_where_they_do() -> None:
    assert sentences("It was 1999. He left. So did I. No. They?! Yes") == [
        *("It was 1999.", "He left.", "So did I.", "No.", "They?!", "Yes")
    ]
    assert sentences("it rained. he sang. the end") == ["it rained.", "he sang.", "the end"]  # no capitals at all
    assert sentences("He said “yes.” Then he left.") == ["He said “yes.”", "Then he left."]
    assert sentences(" \n") == [] and sentences("...") == ["..."]


def test_squad_s_normalisation_and_f1() -> None:
    assert normalize("The  Cat's, a hat!") == "cats hat"
    assert exact("the Ann.", ["Bob", "Ann"]) == 1.0 and exact("Anna", ["Ann"]) == 0.0
    assert f1("the big cat", ["a cat", "dog"]) == pytest.approx(2 * 1 / (2 + 1))
    assert f1("the", ["a"]) == 1.0 and f1("", ["cat"]) == 0.0
    assert left_out(exact, "x", ["x", "y"]) == 0.5 and left_out(exact, "x", ["x"]) == 1.0


def test_drop_compares_numbers_as_numbers() -> None:
    assert drop_scores("3", [["3.0"]]) == (1.0, 1.0)
    assert drop_scores("4 dogs", [["3 dogs"]]) == (0.0, 0.0)
    assert drop_scores("the twenty-one men", [["7"], ["twenty one men"]])[0] == 1.0
    assert drop_scores("red, blue", [["red", "blue"]])[0] == 0.0, "a text is one span"
    assert drop_scores("red and blue", [["red", "blue"]])[1] == 0.25  # one span of three words, aligned with one of two
