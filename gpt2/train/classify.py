"""Texts with labels: the head of model/heads.py trained as GPT-1's was, and how well it does beside a bag of words.

The loss is the labels' cross-entropy, with the language model's own beside it at weight 0.5: Radford et al. 2018,
equation 5, found that it helps. Their sum over a text's tokens is here divided by the tokens of a usual text, so that
the weight means the same for short texts and long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.checkpoint.classifier import Head
from gpt2.data.encoded import Encodings
from gpt2.data.examples import ExampleSet
from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.heads import add_head, label_logits, last_logits
from gpt2.train.by_length import by_length
from gpt2.train.loop import Batch

LM_WEIGHT = 0.5
PREDICTED_TOKENS = 8192  # of texts whose labels are predicted at a time


@dataclass(frozen=True)
class LabelLoss:
    """An objective: nats of the labels, and `lm_weight` times those of a text's tokens, by the mean number of tokens.

    Reads extra["labels"] and extra["ends"] (rows, S) and the targets; see example_batches.py.
    """

    lm_weight: float = LM_WEIGHT
    tokens_per_text: float = 1.0

    def count(self, batch: Batch) -> int:
        return int((batch.extra["ends"] >= 0).sum())

    def loss(self, worker: nn.Module, batch: Batch) -> Tensor:
        hidden = worker.body(batch.inputs, batch.context)  # type: ignore[operator]
        logits, labels = label_logits(worker, hidden, batch.extra["ends"]), known(batch)
        total = F.cross_entropy(logits, labels, reduction="sum")
        if self.lm_weight:
            nats, _ = worker.loss(hidden, batch.targets)  # type: ignore[operator]
            return total + nats * (self.lm_weight / self.tokens_per_text)
        # A tied embedding's gradient is gathered where the head's lies (kernels/fused.py): there has to be one.
        return total + 0.0 * worker.wte.weight[:1].sum()  # type: ignore[index,union-attr]

    def measure(self, worker: nn.Module, batch: Batch) -> dict[str, float]:
        """The labels' nats alone: they are what early stopping should look at."""
        logits = label_logits(worker, worker.body(batch.inputs, batch.context), batch.extra["ends"])  # type: ignore[operator]
        labels = known(batch)
        nats = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": float(nats), "accuracy": float((logits.argmax(1) == labels).sum())}


def known(batch: Batch) -> Tensor:
    """The labels of the batch's texts, row by row (N)."""
    return batch.extra["labels"][batch.extra["ends"] >= 0]


def build_classifier(
    model: GPT, examples: ExampleSet, lm_weight: float = LM_WEIGHT, old: Head | None = None
) -> LabelLoss:
    """Hang a head for the examples' labels onto the model (a frozen base must be frozen already); returns its loss.

    `old` is the base's own: its rows are gone on from, label by label; a label that it lacks begins anew.
    """
    check_labels(examples)
    head = add_head(model, len(examples.labels))
    if old is not None:
        begin_with(head, examples.labels, old)
    return LabelLoss(lm_weight, tokens_per_text(texts_of(examples)))


@torch.no_grad()
def begin_with(head: nn.Linear, labels: Sequence[str], old: Head) -> None:
    """Take over the rows of labels that the old head knows."""
    for number, label in enumerate(labels):
        if label in old.labels:
            head.weight[number] = old.weight[old.labels.index(label)].to(head.weight)


def texts_of(examples: ExampleSet) -> Encodings:
    """The examples of a set of kind `label`."""
    assert isinstance(examples.examples, Encodings)
    return examples.examples


def tokens_per_text(texts: Encodings) -> float:
    """Tokens that the language model learns of a text, on average; at least 1."""
    before = np.concatenate([[0], np.cumsum(texts.wanted)])
    return max(1.0, float((before[texts.ends] - before[texts.starts]).mean()))


def check_labels(train: ExampleSet, held_out: ExampleSet | None = None) -> None:
    """UserError where there is nothing to tell apart, or a label would be asked for that no training text has."""
    if len(train.labels) < 2:
        raise UserError(f"labels: there is only '{''.join(train.labels)}'; a classifier needs at least two")
    seen = set(texts_of(train).labels.tolist())
    for number, label in enumerate(train.labels):
        if number not in seen:
            raise UserError(
                f"label '{label}': no training text has it; take it out of --labels, or give examples of it"
                " (with --val-share, more of them)"
            )
    strange = [label for label in (held_out.labels if held_out else ()) if label not in train.labels]
    if strange:
        raise UserError(f"label '{strange[0]}' of the validation texts was never seen in training; add examples of it")


@torch.no_grad()
def predict(model: GPT, texts: Encodings, device: str = "cpu") -> NDArray[np.int64]:
    """The likeliest label's number for each text (n)."""
    was_training = model.training
    model.eval()
    found = np.empty(len(texts), np.int64)
    for numbers in by_length(texts.positions, PREDICTED_TOKENS):
        lengths = texts.positions[numbers]
        ids = np.zeros((len(numbers), lengths.max()), np.int64)
        for row, number in enumerate(numbers):
            ids[row, : lengths[row]] = texts[number].ids[:-1]
        logits = last_logits(model, torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device))
        found[numbers] = logits.argmax(1).cpu().numpy()
    model.train(was_training)
    return found
