"""The learning rate over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.train.ramp import Ramp
from gpt2.train.schedule import ScheduleConfig, rate_factor, warmup_steps

CONFIGS = st.builds(
    ScheduleConfig,
    schedule=st.sampled_from(["trapezoid", "cosine", "constant"]),
    warmup_tokens=st.none() | st.integers(0, 10**6),
    warmup_fraction=st.floats(0, 1),
    decay_fraction=st.floats(0, 1),
    min_lr=st.floats(0, 1),
)
FALLING = st.builds(
    ScheduleConfig,
    schedule=st.sampled_from(["trapezoid", "cosine"]),
    decay_tokens=st.integers(0, 10**6),
    warmup_tokens=st.none() | st.integers(0, 10**6),
    min_lr=st.floats(0, 1),
)
RAMPS = st.builds(Ramp, st.integers(1, 40), st.integers(1, 300), st.integers(0, 40), st.integers(0, 10**6))


@given(CONFIGS | FALLING, st.integers(1, 500), RAMPS)
def test_the_rate_rises_then_never_rises_again_and_stays_above_nothing(
    config: ScheduleConfig, max_steps: int, ramp: Ramp
) -> None:
    rates = [rate_factor(config, step, max_steps, ramp) for step in range(max_steps)]
    warmup = warmup_steps(config, max_steps, ramp)
    assert all(0 < rate <= 1 for rate in rates[:warmup]) or warmup == 0
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert all(config.min_lr <= rate + 1e-12 for rate in rates[warmup:])


HUNDRED = Ramp(1, 100)  # tokens of every step


def test_gpt3_rises_over_375m_tokens_falls_to_a_tenth_at_260b_and_stays_there() -> None:
    ramp = Ramp(full_rows=256, row_tokens=2048, first_rows=16, over_tokens=4 * 10**9)  # 125M: 32k to 0.5M tokens
    max_steps = ramp.steps_for(300 * 10**9)
    gpt3 = ScheduleConfig(schedule="cosine", warmup_tokens=375 * 10**6, decay_tokens=260 * 10**9, min_lr=0.1)

    def rate(tokens: float) -> float:
        return rate_factor(gpt3, ramp.nearest_step(tokens), max_steps, ramp)

    assert rate(187.5e6) == pytest.approx(0.5, rel=1e-3)
    assert rate(375e6) == pytest.approx(1.0, abs=1e-3)
    assert rate((260e9 + 375e6) / 2) == pytest.approx(0.55, rel=1e-4)
    assert rate(260e9) == rate(280e9) == rate(299e9) == pytest.approx(0.1)


def test_a_trapezoid_falls_over_its_last_tokens() -> None:
    falling = ScheduleConfig(schedule="trapezoid", warmup_tokens=0, decay_tokens=400)
    assert [rate_factor(falling, step, 8, HUNDRED) for step in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_published_shapes() -> None:
    cosine = ScheduleConfig(schedule="cosine", warmup_tokens=1000, min_lr=0.1)  # GPT-3: to 10 %
    assert rate_factor(cosine, 10, 110, HUNDRED) == pytest.approx(1.0)
    assert rate_factor(cosine, 60, 110, HUNDRED) == pytest.approx(0.55)
    assert rate_factor(cosine, 109, 110, HUNDRED) == pytest.approx(0.1, abs=1e-3)
    trapezoid = ScheduleConfig(schedule="trapezoid", warmup_fraction=0.0, decay_fraction=0.5)
    assert [rate_factor(trapezoid, step, 4, Ramp(1, 1)) for step in range(4)] == [1.0, 1.0, 1.0, 0.5]


def test_shares_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(UserError, match="decay_fraction"):
        ScheduleConfig(decay_fraction=1.5)


def test_a_constant_rate_takes_no_decay() -> None:
    with pytest.raises(UserError, match="decay_tokens = 5: a constant rate has no decay"):
        ScheduleConfig(schedule="constant", decay_tokens=5)
