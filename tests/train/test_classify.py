"""Labels are learned from a text's last hidden state, and measured as scikit-learn measures."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gpt2.checkpoint.classifier import Head
from gpt2.errors import UserError
from gpt2.model.heads import head_of
from gpt2.train.by_length import by_length
from gpt2.train.classify import LabelLoss, build_classifier, check_labels, predict, texts_of
from gpt2.train.label_report import report_labels, score
from tests.tiny_models import BYTES, make
from tests.train.labelled import label_batch, labelled

TEXTS = [b"the cat sat", b"one", b"of mice and men", b"a dog ran home", b"two words"]
LABELS = [0, 1, 2, 0, 1]
SET = labelled(TEXTS, LABELS, ("x", "y", "z"))


def test_the_loss_in_packed_rows_is_that_of_each_text_alone() -> None:
    model = make()
    objective = build_classifier(model, SET)
    batch = label_batch(texts_of(SET), [[0, 1, 4], [2, 3]], room=40)
    expected = torch.zeros(())
    for text, label in zip(TEXTS, LABELS, strict=True):
        ids = torch.tensor([[*text, 256]])
        hidden = model.body(ids[:, :-1])
        expected += F.cross_entropy(head_of(model)(hidden[:, -1]), torch.tensor([label]))
        expected += 0.5 * model.loss(hidden, ids[:, 1:])[0] / np.mean([len(text) for text in TEXTS])
    assert objective.count(batch) == 5
    assert objective.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_how_texts_are_laid_out_in_rows_changes_neither_loss_nor_gradient() -> None:
    found = []
    for rows in ([[0, 1, 4], [2, 3]], [[3], [4, 2], [1, 0]]):
        model = make()
        objective = build_classifier(model, SET)
        loss = objective.loss(model, label_batch(texts_of(SET), rows, room=40))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_validation_looks_at_the_labels_alone() -> None:
    model = make()
    objective = build_classifier(model, SET)
    batch = label_batch(texts_of(SET), [[0, 1, 4], [2, 3]], room=40)
    with torch.no_grad():
        measured = objective.measure(model, batch)
    assert measured["loss"] == pytest.approx(LabelLoss(0.0).loss(model, batch).item(), rel=1e-6)
    right = (predict(model, texts_of(SET)) == np.array(LABELS)).sum()
    assert measured["accuracy"] == right


def test_a_head_goes_on_from_the_base_s_label_by_label() -> None:
    model, old = make(), Head(("y", "w"), torch.randn(2, 32))
    build_classifier(model, SET, old=old)
    rows = dict(zip(SET.labels, head_of(model).weight, strict=True))
    assert torch.equal(rows["y"], old.weight[0])
    assert not any(torch.equal(rows[label], known) for label in "xz" for known in old.weight)


def test_a_few_steps_learn_what_the_last_word_says() -> None:
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 123, rng.integers(3, 20)).tolist()) + (b"!" if n % 2 else b"?") for n in range(64)]
    train, held_out = (
        labelled(texts[part], [n % 2 for n in range(64)][part], ("asks", "shouts"))
        for part in (slice(0, 48), slice(48, 64))
    )
    model = make().train()
    objective = build_classifier(model, train)
    adamw = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(25):
        batch = label_batch(texts_of(train), [[row, row + 1, row + 2] for row in range(0, 48, 3)], room=64)
        adamw.zero_grad()
        (objective.loss(model, batch) / objective.count(batch)).backward()
        adamw.step()
    report = report_labels(model, train, held_out, BYTES)
    assert report.rows["this model"].accuracy == 1.0
    assert report.rows["the commonest label"].accuracy == 0.5
    lines = "\n".join(report.table())
    assert "16 held-out texts, 2 labels" in lines and "bag of words" in lines and "100.0%" in lines


def test_without_scikit_learn_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    model = make()
    build_classifier(model, SET)
    report = report_labels(model, SET, SET, BYTES)
    assert report.table()[-1] == "bag of words: needs scikit-learn (pip install scikit-learn)"
    assert len(report.rows) == 2


def test_a_label_never_seen_is_named() -> None:
    missing = labelled(TEXTS, LABELS, ("x", "y", "z", "never"))
    with pytest.raises(UserError, match="label 'never': no training text has it"):
        check_labels(missing)
    with pytest.raises(UserError, match="label 'new' of the validation texts was never seen"):
        check_labels(SET, labelled(TEXTS, LABELS, ("x", "y", "new")))
    with pytest.raises(UserError, match="there is only 'x'"):
        check_labels(labelled(TEXTS, [0] * 5, ("x",)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, guess = np.array(pairs).T
    found = score(truth, guess)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, guess, average="macro"))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_by_length_hold_each_text_once_and_keep_to_their_tokens(lengths: list[int], tokens: int) -> None:
    batches = by_length(np.array(lengths, np.int64), tokens)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= tokens
