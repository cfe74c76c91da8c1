"""The loss and the step do not depend on how a batch is cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from fixed_runs import make_run, side_by_side

from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX
from gpt2.train.config import TrainConfig
from gpt2.train.guard import NonFiniteLoss
from gpt2.train.loop import Run, StepResult, fit, take_step
from gpt2.train.pretrain import pretrain


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 7])
def test_regrouping_micro_batches_changes_nothing(micro_batch_size: int) -> None:
    whole, parts = make_run(12), make_run(micro_batch_size)
    for _ in range(4):
        expected, found = take_step(whole), take_step(parts)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert found.tokens == expected.tokens


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(2, 6), (2, 4), (3, 1), (4, 3), (6, 1)])
def test_regrouping_over_ranks_changes_nothing(ranks: int, micro_batch_size: int) -> None:
    def train(run: Run) -> list[StepResult]:
        return [take_step(run) for _ in range(12)]

    whole = train(make_run(12, optimizer="adamw"))
    for mine in side_by_side(ranks, micro_batch_size, train, "adamw"):
        for found, expected in zip(mine, whole, strict=True):
            assert found.loss == pytest.approx(expected.loss, rel=1e-5)
            assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
            assert found.tokens == expected.tokens


def test_all_ranks_end_after_the_same_step_when_one_is_asked_to() -> None:
    def train(run: Run) -> tuple[int, int]:
        seen: list[int] = []

        def hook(run: Run, result: StepResult) -> None:
            run.asked = run.ranks.rank == 1 and run.state.step == 2
            if run.stopping:
                seen.append(run.state.step)

        return fit(run, [hook]).step, len(seen)

    assert side_by_side(3, 4, train) == [(3, 1)] * 3


def test_the_printed_loss_is_the_mean_over_the_true_targets() -> None:
    run = make_run(5)
    batch = run.batches.next(0)
    with torch.no_grad():
        logits = run.weights.master(batch.inputs).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE_INDEX)
    assert take_step(run).loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_short_weights_learn_as_float32_does(dtype: torch.dtype, optimizer: str) -> None:
    exact, short = make_run(optimizer=optimizer), make_run(4, dtype, optimizer)
    for _ in range(10):
        expected, found = take_step(exact), take_step(short)
    assert found.loss == pytest.approx(expected.loss, rel=0.03)
    assert not found.skipped
    assert found.loss < 3.5


def test_a_float16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    run = make_run(dtype=torch.float16)
    run.weights.loss_scale = 2.0**40
    before = [p.clone() for p in run.weights.parameters]
    result = take_step(run)
    assert result.skipped
    assert run.weights.loss_scale == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights.parameters, strict=True))


def test_a_loss_that_is_no_number_stops_before_the_weights() -> None:
    run = make_run()
    with torch.no_grad():
        run.weights.master.ln_f.bias[0] = math.nan
    before = run.weights.master.wte.weight.clone()
    with pytest.raises(NonFiniteLoss, match="step 1: the loss is nan"):
        fit(run, [])
    assert torch.equal(before, run.weights.master.wte.weight)


def test_a_float16_run_that_is_dead_stops_when_the_scale_has_no_room_left() -> None:
    run = make_run(dtype=torch.float16)
    run.weights.loss_scale = 2.0
    with torch.no_grad():
        run.weights.worker.ln_f.bias[0] = math.nan
    assert take_step(run).skipped
    with pytest.raises(NonFiniteLoss):
        take_step(run)


def test_a_run_that_blows_up_names_the_last_good_checkpoint(tiny: Callable[..., TrainConfig]) -> None:
    poison = {"optim": {"optimizer": "adamw", "learning_rate": 1e30}, "save_every": 1, "grad_clip": 0.0}
    with pytest.raises(UserError, match=r"step \d+: .* is (nan|inf); training stopped; the last good checkpoint"):
        pretrain(tiny(max_steps=20, **poison), quiet=True)
