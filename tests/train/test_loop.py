"""The loss and the step do not depend on how a batch is cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_runs import Fixed, make_run, side_by_side
from killed_runs import trace

from gpt2.checkpoint.train_state import steps
from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX
from gpt2.train import guard
from gpt2.train.config import TrainConfig
from gpt2.train.guard import FIRST_WATCHED, Guard, Leap, NonFiniteLoss
from gpt2.train.loop import Batch, Run, StepResult, TokenLoss, fit, take_step
from gpt2.train.pretrain import pretrain, resume
from gpt2.train.save import Save


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


class Rolling(Fixed):
    """Batches with a place: rows roll on, so that a step with a wrong cursor has another loss."""

    def __init__(self) -> None:
        super().__init__()
        self.place = 0

    def next(self, step: int) -> Batch:
        self.place += 1
        rolled = torch.roll(self.batch.inputs, self.place, 0)
        return Batch(rolled, torch.where(self.batch.targets == IGNORE_INDEX, IGNORE_INDEX, rolled))

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load(self, state: Mapping[str, Any]) -> None:
        self.place = state["place"]


def rolling(**settings: Any) -> Run:
    run = make_run(3)
    run.batches = Rolling()
    for name, value in settings.items():
        setattr(run, name, value)
    return run


def test_a_step_that_was_broken_off_leaves_no_trace_and_is_taken_later() -> None:
    def train(break_at: int) -> list[StepResult]:
        found: list[StepResult] = []
        run, passes = rolling(), 0
        original = run.objective.loss

        def loss(worker: Any, batch: Batch) -> torch.Tensor:
            nonlocal passes
            passes += 1
            run.asked = passes == break_at
            return original(worker, batch) * (0.9 + 0.2 * torch.rand(()))  # dice, as dropout throws them

        run.objective.loss = loss  # type: ignore[method-assign]
        fit(run, [lambda run, result: found.append(result)])
        if break_at:
            assert run.stopping and run.state.step == len(found) < 5
            run.asked = run.stopping = False
            fit(run, [lambda run, result: found.append(result)])
        return found

    whole, broken = train(0), train(4 * 2 + 2)  # four passes a step: in the midst of the third
    assert [(r.loss, r.grad_norm) for r in broken] == [(r.loss, r.grad_norm) for r in whole]


def test_a_leap_that_stops_the_run_leaves_it_before_the_step() -> None:
    run = rolling(guard=Guard("stop"))
    fit(run, [lambda run, result: setattr(run, "stopping", run.state.step == 2)])
    run.stopping = False
    habits = replace(run.state, watched=FIRST_WATCHED, loss_mean=1e-3, norm_mean=1e9)  # so that any loss is a leap
    run.state = replace(habits)
    with pytest.raises(Leap, match="step 3"):
        fit(run, [])
    assert run.state == habits and run.batches.state() == {"place": 2}


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


def test_what_was_trained_before_a_leap_is_saved_and_after_no_number_older_steps_stay(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, calls, factor = TokenLoss.loss, 0, 1.0

    def wild_in_step_8(self: TokenLoss, worker: Any, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, worker, batch) * (factor if calls == 8 else 1.0)

    monkeypatch.setattr(TokenLoss, "loss", wild_in_step_8)
    monkeypatch.setattr(guard, "FIRST_WATCHED", 5)
    settings = {"save_every": 3, "keep_last": 1, "micro_batch_size": 8, "model": {"dropout": 0.2}, "eval_every": 3}
    whole = pretrain(tiny(**settings, out=str(tmp_path / "whole"), on_outlier="stop"), quiet=True).folder
    for name, last in (("leap", "step_00000007"), ("no number", "step_00000006")):
        calls, factor, out = 0, 30.0 if name == "leap" else math.nan, tmp_path / name
        with pytest.raises(UserError, match=rf"step 8: .*; training stopped; .* checkpoint is .*{last}; go on"):
            pretrain(tiny(out=str(out), on_outlier="stop", **settings), quiet=True)
        assert list(steps(out))[-1].name == last and (out / "step_00000006").is_dir()
        resume(out, quiet=True)
        assert trace(out) == trace(whole)


def test_a_checkpoint_that_cannot_be_written_does_not_hide_the_leap(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leap(*_: object) -> str:
        raise Leap("step 1: a leap")

    def full(self: Save, run: Run) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(Guard, "look", leap)
    monkeypatch.setattr(Save, "keep", full)
    with pytest.raises(UserError, match="step 1: a leap; training stopped"):
        pretrain(tiny(), quiet=True)
    assert "the disk is full" in capsys.readouterr().err
