"""Batches that grow: the closed form against counting step by step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.train import plan
from gpt2.train.config import TrainConfig, compose
from gpt2.train.ramp import Ramp

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 50), st.integers(0, 60), st.integers(0, 20_000))


def counted(full: int, length: int, first: int, over: int, steps: int) -> list[tuple[int, int]]:
    """(rows, tokens before) of every step, by the definition: the level that the line has passed at its start."""
    first = min(first or full, full)
    found, tokens = [], 0
    for _ in range(steps):
        levels = [first, *(rows + first for rows in range(first, full, first))]
        passed = [0, *(round(over * min(1.0, rows / (full - first))) for rows in range(first, full, first))]
        rows = max(min(level, full) for level, start in zip(levels, passed, strict=True) if start <= tokens)
        found.append((rows, tokens))
        tokens += rows * length
    return found


@given(SHAPES)
def test_rows_and_tokens_are_those_that_counting_finds(shape: tuple[int, int, int, int]) -> None:
    ramp = Ramp(*shape)
    assert [(ramp.rows_at(step), ramp.tokens_before(step)) for step in range(150)] == counted(*shape, 150)


@given(SHAPES, st.integers(0, 10**6))
def test_steps_for_is_the_inverse_of_tokens_before(shape: tuple[int, int, int, int], tokens: int) -> None:
    ramp = Ramp(*shape)
    steps = ramp.steps_for(tokens)
    assert ramp.tokens_before(steps) >= tokens
    assert steps == 0 or ramp.tokens_before(steps - 1) < tokens
    nearest = ramp.nearest_step(tokens)
    errors = {step: abs(ramp.tokens_before(step) - tokens) for step in (steps - 1, steps, steps + 1) if step >= 0}
    assert errors[nearest] == min(errors.values())


@given(SHAPES)
def test_rows_never_shrink_and_are_dealt_out_evenly_if_the_first_and_the_last_are(
    shape: tuple[int, int, int, int],
) -> None:
    full, length, first, over = shape
    ramp = Ramp(4 * full, length, 4 * first, over)
    rows = [level.rows for level in ramp.levels]
    assert rows == sorted(rows) and rows[-1] == 4 * full
    assert all(count % 4 == 0 for count in rows)


def test_gpt3_175b_is_at_3_2m_tokens_after_12_billion() -> None:
    ramp = Ramp(full_rows=1562, row_tokens=2048, first_rows=16, over_tokens=12 * 10**9)
    full = ramp.levels[-1]
    assert full.rows * 2048 == pytest.approx(3.2e6, rel=1e-3)
    assert 12e9 <= full.tokens < 12e9 + 3.2e6
    halfway = ramp.rows_at(ramp.nearest_step(6e9))
    assert halfway == pytest.approx((16 + 1562) / 2, abs=16)


def config(**changes: Any) -> TrainConfig:
    model = {"context_length": 16, "vocab_size": 61} | changes.pop("model", {})
    return compose(**({"preset": "tiny", "batch_tokens": 128, "model": model} | changes))


def never() -> float:
    raise AssertionError("nothing is to be measured")


def test_a_run_ends_by_steps_tokens_or_epochs_in_this_order() -> None:
    growing = {"batch_ramp_tokens": 1280, "batch_ramp_from": 32}
    assert plan.decide_steps(config(max_steps=7, max_tokens=10), 1000, never) == 7
    assert plan.decide_steps(config(max_tokens=1281), 1000, never) == 11
    assert plan.decide_steps(config(epochs=2.0), 1000, never) == 16
    longer = config(max_tokens=1280, **growing)
    steps = plan.decide_steps(longer, 1000, never)
    assert longer.ramp.tokens_before(steps - 1) < 1280 <= longer.ramp.tokens_before(steps)
    assert steps > 10


@given(st.integers(0, 5000))
def test_a_time_budget_is_turned_into_tokens_and_these_into_steps(ramp_tokens: int) -> None:
    run = config(max_seconds=100.0, batch_ramp_tokens=ramp_tokens, batch_ramp_from=32, eval_tokens=1)
    steps = plan.decide_steps(run, 1000, lambda: 0.128)  # a millisecond a token
    assert 95_000 < run.ramp.tokens_before(steps) <= 96_000


def test_a_growing_batch_that_cannot_be_is_refused() -> None:
    for start in (8, 256):
        with pytest.raises(UserError, match=f"batch_ramp_from = {start}: a growing batch starts with a row"):
            config(batch_ramp_tokens=100, batch_ramp_from=start).check_rows()
    config(batch_ramp_tokens=0, batch_ramp_from=8).check_rows()
