"""The learning rate over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.train.schedule import ScheduleConfig, rate_factor, warmup_steps

CONFIGS = st.builds(
    ScheduleConfig,
    schedule=st.sampled_from(["trapezoid", "cosine", "constant"]),
    warmup_tokens=st.none() | st.integers(0, 10**6),
    warmup_fraction=st.floats(0, 1),
    decay_fraction=st.floats(0, 1),
    min_lr=st.floats(0, 1),
)


@given(CONFIGS, st.integers(1, 500), st.integers(1, 10_000))
def test_the_rate_rises_then_never_rises_again_and_stays_above_nothing(
    config: ScheduleConfig, max_steps: int, batch_tokens: int
) -> None:
    rates = [rate_factor(config, step, max_steps, batch_tokens) for step in range(max_steps)]
    warmup = warmup_steps(config, max_steps, batch_tokens)
    assert all(0 < rate <= 1 for rate in rates[:warmup]) or warmup == 0
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert all(config.min_lr <= rate + 1e-12 for rate in rates[warmup:])


def test_published_shapes() -> None:
    cosine = ScheduleConfig(schedule="cosine", warmup_tokens=1000, min_lr=0.1)  # GPT-3: to 10 %
    assert rate_factor(cosine, 10, 110, 100) == pytest.approx(1.0)
    assert rate_factor(cosine, 60, 110, 100) == pytest.approx(0.55)
    assert rate_factor(cosine, 109, 110, 100) == pytest.approx(0.1, abs=1e-3)
    trapezoid = ScheduleConfig(schedule="trapezoid", warmup_fraction=0.0, decay_fraction=0.5)
    assert [rate_factor(trapezoid, step, 4, 1) for step in range(4)] == [1.0, 1.0, 1.0, 0.5]


def test_shares_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(UserError, match="decay_fraction"):
        ScheduleConfig(decay_fraction=1.5)
