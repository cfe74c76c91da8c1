"""Preferences are learned as the paper's formula says, against margins that are computed once."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpt2.model.gpt import GPT
from gpt2.train.example_batches import choose_room
from gpt2.train.preference import PreferenceLoss, kept_reference, reference_margins
from tests.tiny_models import make
from tests.train.labelled import pair_batch, preferences

PAIRS = preferences(
    [(b"2+2=", b"4", b"five"), (b"the sky is ", b"blue", b"green"), (b"a", b" long answer to it", b"no")]
)


def plain_margin(model: GPT, number: int) -> torch.Tensor:
    """The difference of two log-probabilities, token by token from whole logits."""
    sums = []
    for side in (PAIRS[number].chosen, PAIRS[number].rejected):
        ids = torch.from_numpy(side.ids.astype(np.int64))
        found = F.log_softmax(model(ids[None, :-1])[0], -1).gather(1, ids[1:, None])[:, 0]
        sums.append(found[torch.from_numpy(side.wanted[1:])].sum())
    return sums[0] - sums[1]


def test_the_loss_is_the_papers_formula() -> None:
    model, base = make(seed=1), make(seed=2)
    reference = reference_margins(base, PAIRS)
    for number in range(3):
        assert reference[number] == pytest.approx(plain_margin(base, number).item(), abs=1e-4)
    batch = pair_batch(PAIRS, range(3), reference, room=50)
    objective = PreferenceLoss(0.3)
    gains = torch.stack([plain_margin(model, n) - plain_margin(base, n) for n in range(3)])
    expected = -torch.log(torch.sigmoid(0.3 * gains)).sum()
    assert objective.count(batch) == 3
    assert objective.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-4)
    with torch.no_grad():
        measured = objective.measure(model, batch)
    assert measured["margin"] == pytest.approx(gains.sum().item(), abs=1e-3)
    assert measured["accuracy"] == (gains > 0).sum()


def test_a_short_pair_beside_one_that_is_longer_than_the_context() -> None:
    """A row is as long as the longest pair together: padding behind a short one is then longer than the context."""
    model = make(seed=1)
    length = model.config.context_length
    pairs = preferences([(b"p", b"a" * (length - 4), b"b" * (length - 4)), (b"q", b"x", b"y")])
    reference = reference_margins(model, pairs)
    batch = pair_batch(pairs, range(2), reference, room=choose_room(pairs, length))
    assert batch.inputs.size(1) > 2 * length - 10
    with torch.no_grad():
        assert PreferenceLoss().measure(model, batch)["margin"] == pytest.approx(0.0, abs=1e-3)


def test_the_gradient_is_that_of_plain_log_probabilities() -> None:
    model = make(seed=1)
    twin = copy.deepcopy(model)
    reference = np.array([0.5, -0.2, 0.1], np.float32)
    PreferenceLoss().loss(model, pair_batch(PAIRS, range(3), reference, room=60)).backward()
    gains = torch.stack([plain_margin(twin, n) - float(reference[n]) for n in range(3)])
    (-F.logsigmoid(0.1 * gains)).sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_model_that_has_not_moved_has_the_loss_of_a_coin() -> None:
    model = make()
    batch = pair_batch(PAIRS, range(3), reference_margins(model, PAIRS), room=50)
    with torch.no_grad():
        measured = PreferenceLoss().measure(model, batch)
    assert measured["loss"] / 3 == pytest.approx(np.log(2), abs=1e-5)
    assert measured["margin"] == pytest.approx(0.0, abs=1e-4)


def test_rows_that_only_fill_a_batch_up_count_for_nothing() -> None:
    model = make()
    batch = pair_batch(PAIRS, range(3), np.zeros(3, np.float32), room=50)
    batch.targets[1] = -100
    objective = PreferenceLoss()
    assert objective.count(batch) == 2
    alone = pair_batch(PAIRS, [0, 2], np.zeros(3, np.float32), room=50)
    assert objective.loss(model, batch).item() == pytest.approx(objective.loss(model, alone).item(), rel=1e-5)


def made_pairs(seed: int, count: int) -> list[tuple[bytes, bytes, bytes]]:
    """Prompts of letters; good answers are digits, bad ones letters."""
    rng = np.random.default_rng(seed)

    def some(low: int, high: int) -> bytes:
        return bytes(rng.integers(low, high, rng.integers(2, 8)).tolist())

    return [(some(97, 123), some(48, 58), some(97, 123)) for _ in range(count)]


def test_training_lowers_the_loss_and_raises_the_margin_on_held_out_pairs() -> None:
    train, held_out = preferences(made_pairs(0, 24)), preferences(made_pairs(1, 24))
    model, objective = make(), PreferenceLoss()
    batches = [pair_batch(pairs, range(24), reference_margins(model, pairs), room=64) for pairs in (train, held_out)]
    with torch.no_grad():
        before = objective.measure(model, batches[1])
    adamw = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(15):
        adamw.zero_grad()
        (objective.loss(model, batches[0]) / 24).backward()
        adamw.step()
    with torch.no_grad():
        after = objective.measure(model, batches[1])
    assert after["loss"] < 0.8 * before["loss"]
    assert after["margin"] / 24 > 1.0
    assert after["accuracy"] >= 20


def test_reference_margins_read_each_pair_once_and_training_reads_no_reference(tmp_path: Path) -> None:
    pairs = preferences(made_pairs(0, 12))
    base = make()
    rows: list[int] = []
    body = base.body

    def counted(input_ids: torch.Tensor, context: object = None) -> torch.Tensor:
        rows.append(len(input_ids))
        return body(input_ids, context)  # type: ignore[arg-type]

    base.body = counted  # type: ignore[method-assign]
    policy = make()
    for _session in range(2):  # the second one is a run that goes on
        reference = kept_reference(tmp_path / "reference.safetensors", "these", lambda: reference_margins(base, pairs))
        for _epoch in range(3):
            PreferenceLoss().loss(policy, pair_batch(pairs, range(12), reference, room=64)).backward()
    assert sum(rows) == 12


def test_margins_of_other_pairs_or_in_a_damaged_file_are_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    first, second = np.array([1.0], np.float32), np.array([2.0], np.float32)
    assert kept_reference(path, "one", lambda: first) == first
    assert kept_reference(path, "one", lambda: second) == first
    assert kept_reference(path, "another", lambda: second) == second
    path.write_bytes(b"not safetensors")
    assert kept_reference(path, "another", lambda: first) == first
