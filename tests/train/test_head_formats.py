"""Labels and preferences are learned in bfloat16 by the fused passes as in float32 by the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt2.kernels import ops
from gpt2.model.gpt import GPT
from gpt2.train.classify import build_classifier, texts_of
from gpt2.train.fused_weights import FusedWeights
from gpt2.train.loop import Batch, Objective
from gpt2.train.preference import PreferenceLoss
from tests.tiny_models import make
from tests.train.labelled import label_batch, labelled, pair_batch, preferences

SET = labelled([b"the cat sat", b"one", b"of mice and men", b"a dog ran home"], [0, 1, 2, 0], ("x", "y", "z"))
PAIRS = preferences([(b"2+2=", b"4", b"five"), (b"the sky is ", b"blue", b"green")])

pytestmark = pytest.mark.skipif(not ops.have_kernels(), reason="the kernels need numba")


def gradients(model: GPT, objective: Objective, batch: Batch) -> dict[str, torch.Tensor]:
    """Of the float32 masters, by name."""
    weights = FusedWeights(model, torch.bfloat16)
    weights.train()
    weights.backward(objective.loss(weights.worker, batch))
    weights.sum_gradients()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def plain_gradients(model: GPT, objective: Objective, batch: Batch) -> dict[str, torch.Tensor]:
    model.train()
    objective.loss(model, batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, expected in other.items():
        if expected.norm() > 1e-3:
            assert (one[name] - expected).norm() < 0.06 * expected.norm(), name


@pytest.mark.parametrize("lm_weight", [0.5, 0.0])
@pytest.mark.parametrize("tied", [True, False])
def test_labels(lm_weight: float, tied: bool) -> None:
    found = []
    for way in (gradients, plain_gradients):
        model = make(n_embd=64, tie_head=tied)
        torch.manual_seed(7)
        objective = build_classifier(model, SET, lm_weight)
        found.append(way(model, objective, label_batch(texts_of(SET), [[0, 1], [2, 3]], room=32)))
    assert found[0]["score.weight"].norm() > 0
    assert_alike(*found)


def test_preferences() -> None:
    batch = pair_batch(PAIRS, range(2), np.array([0.3, -0.4], np.float32), room=48)
    found = [way(make(n_embd=64), PreferenceLoss(), batch) for way in (gradients, plain_gradients)]
    assert_alike(*found)
