"""Answers: line by line, the surest of several, labels by likelihood or by a head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fake_scores import FakeScores
from tiny_models import BYTES, make

from gpt2.checkpoint.classifier import Classifier, with_head
from gpt2.errors import UserError
from gpt2.evaluate.answering import Head, Likelihoods, grouped, surest, translated
from gpt2.evaluate.prompts import Prompt
from gpt2.evaluate.verbs import ANSWER, Asker, classify, translate
from gpt2.inference.sampling import SamplingParams

GREEDY = SamplingParams(max_new_tokens=8, temperature=0.0)


class Writer(FakeScores):
    """Writes as a Scorer does, what its table of texts says."""

    def write(self, prompts: Any, params: Any) -> list[str]:
        return self.greedy(prompts, 8)


def test_lines_stay_lines_and_each_sentence_is_asked_alone() -> None:
    scores = Writer(texts={"One. =": " Un. Et encore", "Two! =": " Deux\n", "Three =": " Trois."})
    made = Asker(translate("en", "fr"), BYTES, 400, 8)
    found = list(translated(scores, made, "One.  Two!\n\nThree", GREEDY))  # type: ignore[arg-type]
    assert found == ["Un. Deux", "", "Trois."]
    assert scores.prompts == ["One. =", "Two! =", "Three ="]


def test_lines_are_written_in_groups() -> None:
    lines = [["a"] * 40, [], ["b"] * 40, ["c"]]
    assert [len(group) for group in grouped(lines)] == [3, 1]
    assert list(grouped([])) == []


def test_the_surest_answer_is_the_likeliest_a_token_and_an_empty_one_is_none() -> None:
    after = {" ": {"a": 0.5, "b": 0.9}, "b": {"b": 0.9}, "a": {"a": 0.1}}
    texts = {"1\n\nQ: ?\n\nA:": "", "2\n\nQ: ?\n\nA:": " aa", "3\n\nQ: ?\n\nA:": " bb"}
    prompts = [Prompt(text, BYTES.encode(text)) for text in texts]
    made = Asker(ANSWER, BYTES, 400, 8)
    assert surest(Writer(after, texts), made, prompts, GREEDY) == "bb"  # type: ignore[arg-type]
    assert surest(Writer(after, texts), made, prompts[:1], GREEDY) == ""  # type: ignore[arg-type]
    assert surest(Writer(), made, prompts[:2], GREEDY) == ""  # type: ignore[arg-type]


def labelled(by: str, long: str = "cut", texts: tuple[str, ...] = ("x",)) -> list[dict[str, float]]:
    after = {" ": {"a": 0.2, "b": 0.1}, "b": {"c": 0.9}}
    made = Asker(classify(["a", "bc"]), BYTES, 60, 3, long=long)  # type: ignore[arg-type]
    prompts = [made.prompts({"text": text}) for text in texts]
    return Likelihoods(["a", "bc"], by)(FakeScores(after), made, prompts)  # type: ignore[arg-type]


def test_labels_are_compared_in_each_of_the_ways() -> None:
    space = math.log(1 / 256)
    (by_sum,) = labelled("sum")
    assert by_sum == pytest.approx({"a": space + math.log(0.2), "bc": space + math.log(0.09)})
    (by_token,) = labelled("token")
    assert by_token == pytest.approx({"a": by_sum["a"] / 2, "bc": by_sum["bc"] / 3})
    assert labelled("character")[0] == pytest.approx({"a": by_sum["a"], "bc": by_sum["bc"] / 2})
    assert labelled("answer")[0] == pytest.approx({"a": 0, "bc": 0})  # as likely after "Answer:" alone


def test_several_texts_get_values_each_and_pieces_their_mean() -> None:
    short, long = labelled("sum", "walk", ("x", "many words " * 9))
    assert short == pytest.approx(long)


def test_a_head_gives_log_probabilities_and_a_walk_the_mean_over_pieces() -> None:
    torch.manual_seed(1)
    module = with_head(make(), torch.randn(2, 32))
    both = Classifier(("no", "yes"), module)
    (values,) = Head(both, BYTES)(["A ship."])
    logits = both.logits([BYTES.encode("A ship.")])[0].log_softmax(0)
    assert values == pytest.approx(dict(zip(("no", "yes"), logits.tolist(), strict=True)))
    text = ("a" * 50 + " ") * 3
    first, *_, last = Head(both, BYTES)(["a" * 50, "b"])
    assert Head(both, BYTES, "walk")([text, "b"]) == [pytest.approx(first), pytest.approx(last)]
    assert Head(both, BYTES)([text]) == Head(both, BYTES)([text[:64]])
    with pytest.raises(UserError, match="153 tokens passes the model's context of 64; use --long cut or walk"):
        Head(both, BYTES, "error")([text])
