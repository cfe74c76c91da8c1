"""Steps that leap: what is one, what becomes of it, and that a resumed run decides the same."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from typing import Any

import pytest
import torch
from fixed_runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.train.guard import FIRST_WATCHED, MOST_BAD_IN_A_ROW, Guard, Habits, Leap, NonFiniteLoss
from gpt2.train.loop import TrainState, fit

SKIP = Guard("skip")


def usual(steps: int, seed: int = 1) -> list[tuple[float, float]]:
    """Losses that fall with noise, gradient norms with much noise."""
    dice = random.Random(seed)
    return [(3 + 5 / (1 + step / 30) + dice.gauss(0, 0.05), math.exp(dice.gauss(0, 0.1))) for step in range(steps)]


def judge(guard: Guard, habits: Habits, steps: list[tuple[float, float]]) -> list[str]:
    return [guard.look(habits, loss, norm, step) for step, (loss, norm) in enumerate(steps, 1)]


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_a_usual_run_has_no_leaps(seed: int) -> None:
    assert judge(SKIP, Habits(), usual(400, seed)) == [""] * 400


def test_a_leap_is_skipped_stops_the_run_or_is_kept() -> None:
    steps = [*usual(200), (9.0, 1.0), (3.6, 40.0), (3.6, 1.0)]
    *before, loss, norm, after = judge(SKIP, Habits(), steps)
    assert before == [""] * 200 and after == ""
    assert "a loss of 9 is" in loss and "deviations above its mean" in loss
    assert "a gradient norm of 40 is" in norm
    with pytest.raises(Leap, match=r"step 201: a loss of 9 is .* \(on_outlier = stop\)"):
        judge(Guard("stop"), Habits(), steps)
    assert judge(Guard("keep"), Habits(), steps) == [""] * 203


def test_lower_is_never_a_leap() -> None:
    assert judge(SKIP, Habits(), [*usual(200), (0.1, 1e-6)])[-1] == ""


def test_the_first_steps_are_only_watched() -> None:
    wild = [(10.0 * (1 + step % 3), 1.0) for step in range(FIRST_WATCHED)]
    assert judge(SKIP, Habits(), wild) == [""] * FIRST_WATCHED


def test_a_level_that_stays_is_accepted_after_a_few_steps() -> None:
    higher = [(6.0, 1.0)] * 40
    verdicts = judge(SKIP, Habits(), [*usual(300), *higher])[300:]
    assert verdicts[0] and not verdicts[-1]
    assert sum(map(bool, verdicts)) < 15


def test_longer_rows_begin_new_means() -> None:
    habits = Habits()
    habits.expect(64)
    judge(SKIP, habits, usual(200))
    habits.expect(64)
    assert habits.watched == 200
    habits.expect(256)
    assert judge(SKIP, habits, [(9.0, 3.0)] * FIRST_WATCHED) == [""] * FIRST_WATCHED
    assert habits.loss_mean == pytest.approx(9.0) and habits.norm_mean == pytest.approx(3.0)


def test_no_numbers_stop_the_run_unless_they_are_skipped_and_even_then_not_for_ever() -> None:
    for guard in (Guard("keep"), Guard("stop")):
        with pytest.raises(NonFiniteLoss, match="step 1: the loss is nan"):
            guard.look(Habits(), math.nan, 1.0, 1)
    habits = Habits()
    assert judge(SKIP, habits, [(3.0, math.inf)] * MOST_BAD_IN_A_ROW)[-1] == "the gradient norm is inf"
    assert habits.watched == 0
    with pytest.raises(NonFiniteLoss, match="as in the 20 steps before"):
        SKIP.look(habits, 3.0, math.inf, 21)
    SKIP.look(habits, 3.0, 1.0, 22)
    assert habits.bad_in_a_row == 0


@given(st.integers(0, 300))
def test_a_resumed_run_decides_the_same(cut: int) -> None:
    steps = usual(300)
    for place in (120, 180, 181, 240):
        steps[place] = (12.0, 30.0)
    whole, first = TrainState(), TrainState()
    expected = judge(SKIP, whole, steps)
    found = judge(SKIP, first, steps[:cut])
    saved: dict[str, Any] = json.loads(json.dumps(asdict(first)))
    found += judge(SKIP, second := TrainState(**saved), steps[cut:])
    assert [bool(text) for text in found] == [bool(text) for text in expected] and sum(map(bool, expected)) == 4
    assert second == whole


def test_a_skipped_step_leaves_weights_and_optimizer_alone_and_counts() -> None:
    run = make_run()
    run.guard = SKIP
    run.state.row_length, run.state.watched = 16, FIRST_WATCHED
    run.state.loss_mean, run.state.norm_mean = 1e-3, 1e9  # so 3.9 is a leap
    before = [p.clone() for p in run.weights.parameters]
    found: list[Any] = []
    run.max_steps = 1
    fit(run, [lambda run, result: found.append(result)])
    assert found[0].skipped and "skipped: a loss of" in found[0].note
    assert run.state.step == 1 and run.state.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights.parameters, strict=True))


def test_a_skipped_nan_does_not_reach_the_weights() -> None:
    run = make_run()
    run.guard = SKIP
    original = run.weights.worker.forward

    def nan_at_step_2(*arguments: Any) -> Any:
        loss, count = original(*arguments)
        return (loss * math.nan if run.state.step == 1 else loss), count

    run.weights.worker.forward = nan_at_step_2  # type: ignore[method-assign]
    losses: list[float] = []
    fit(run, [lambda run, result: losses.append(result.loss)])
    assert math.isnan(losses[1]) and run.state.skipped == 1
    assert losses[-1] < losses[0] and all(bool(p.isfinite().all()) for p in run.weights.parameters)
