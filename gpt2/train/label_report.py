"""How well labels are told, beside what a bag of words and no thought at all can do on the same split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2.data.examples import ExampleSet
from gpt2.model.gpt import GPT
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.train.classify import predict, texts_of


@dataclass(frozen=True)
class Scores:
    """Shares between 0 and 1. Macro-F1 is the mean of the labels' F1, each label counting alike."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class LabelReport:
    """Who told the held-out labels how well, by name; `missing` says why a row is not there."""

    texts: int
    labels: int
    rows: dict[str, Scores]
    missing: str = ""

    def table(self) -> list[str]:
        """Lines for people."""
        width = max(map(len, self.rows)) + 2
        heading = f"{self.texts:,} held-out texts, {self.labels} labels"
        lines = [heading, f"{'':{width}}accuracy  macro-F1"]
        lines += [f"{name:{width}}{row.accuracy:8.1%}  {row.macro_f1:8.1%}" for name, row in self.rows.items()]
        return lines + ([self.missing] if self.missing else [])

    def as_metrics(self) -> dict[str, float]:
        """`test/accuracy` and `test/macro_f1` of the model, for the run's metrics."""
        ours = next(iter(self.rows.values()))
        return {"test/accuracy": ours.accuracy, "test/macro_f1": ours.macro_f1}


def report_labels(
    model: GPT, train: ExampleSet, held_out: ExampleSet, tokenizer: Tokenizer, device: str = "cpu"
) -> LabelReport:
    """Measure the model and its peers on the held-out texts, each as the model reads it (cut, where it is cut)."""
    truth = labels_of(held_out)
    commonest = np.bincount(labels_of(train), minlength=len(train.labels)).argmax()
    rows = {"this model": score(truth, predict(model, texts_of(held_out), device))}
    words = bag_of_words(written(train, tokenizer), labels_of(train), written(held_out, tokenizer))
    if words is not None:
        rows["bag of words, logistic regression"] = score(truth, words)
    rows["the commonest label"] = score(truth, np.full_like(truth, commonest))
    missing = "" if words is not None else "bag of words: needs scikit-learn (pip install scikit-learn)"
    return LabelReport(len(truth), len(train.labels), rows, missing)


def labels_of(examples: ExampleSet) -> NDArray[np.int64]:
    """The label numbers (n)."""
    return texts_of(examples).labels.astype(np.int64)


def written(examples: ExampleSet, tokenizer: Tokenizer) -> list[str]:
    """The texts that the tokens stand for."""
    return [tokenizer.decode(example.ids[:-1].tolist()) for example in texts_of(examples)]


def bag_of_words(train: Sequence[str], labels: NDArray[np.int64], held_out: Sequence[str]) -> NDArray[np.int64] | None:
    """What a logistic regression over the words (TF-IDF) says of the held-out texts; None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    # Capitals and punctuation marks are words of their own: a model reads them, so the peer may.
    words = TfidfVectorizer(lowercase=False, token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    found: NDArray[np.int64] = model.fit(train, labels).predict(held_out)
    return found


def score(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> Scores:
    """Accuracy and macro-F1 over the labels that either names, as scikit-learn's f1_score(average="macro")."""
    each = []
    for label in np.union1d(truth, guess):
        hits = int(((truth == label) & (guess == label)).sum())
        each.append(2 * hits / int((truth == label).sum() + (guess == label).sum()))
    return Scores(float((truth == guess).mean()), float(np.mean(each)))
