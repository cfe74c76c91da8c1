"""The power laws: found again where they were put in, and refused where there is none to be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.train.scaling import Law, fit, fit_line, residual

laws = st.builds(Law, st.floats(1.0, 200.0), st.floats(0.03, 0.6))
starts = st.floats(1e4, 1e12)
FACTORS = np.array([1.0, 2.3, 4.6, 8.3])  # the default ladder's parameters


@given(laws, starts, st.integers(2, 6))
def test_a_pure_power_law_is_found_again(law: Law, start: float, count: int) -> None:
    x = [start * 3.0**n for n in range(count)]
    found = fit_line(x, [law(each) for each in x])
    assert found.exponent == pytest.approx(law.exponent, rel=1e-6)
    assert found(x[-1] * 10) == pytest.approx(law(x[-1] * 10), rel=1e-6)


@given(st.floats(0.1, 0.6), st.floats(0.0, 0.9), starts)
def test_a_law_with_a_floor_says_the_next_size_to_a_thousandth(exponent: float, share: float, start: float) -> None:
    x = list(start * FACTORS)
    law = Law(x[0] ** exponent, exponent)  # 1 at the smallest size
    law = Law(law.scale, exponent, share * law(x[-1]))
    loss = [law(each) for each in x]
    found = fit(x, loss)
    assert residual(found, x, loss) < 1e-4
    assert found(2.6 * x[-1]) == pytest.approx(law(2.6 * x[-1]), rel=2e-3)


@given(st.lists(st.floats(-0.003, 0.003), min_size=4, max_size=4))
def test_noise_of_a_third_of_a_percent_moves_the_prediction_by_less_than_three(noise: list[float]) -> None:
    x = list(1.6e5 * FACTORS)
    law = Law(113.4, 0.2833, 1.94)  # a ladder on Python's library
    found = fit(x, [law(a) * (1 + e) for a, e in zip(x, noise, strict=True)])
    assert found(3.47e6) == pytest.approx(law(3.47e6), rel=0.03)


@given(laws, starts)
def test_units_do_not_matter(law: Law, start: float) -> None:
    x = list(start * FACTORS)
    loss = [law(each) * (1 + 0.002 * (-1) ** n) for n, each in enumerate(x)]
    in_flops, in_pf_days = fit(x, loss), fit([each / 8.64e19 for each in x], loss)
    assert in_flops.floor == in_pf_days.floor
    assert in_flops(5 * x[-1]) == pytest.approx(in_pf_days(5 * x[-1] / 8.64e19), rel=1e-6)


def test_two_points_make_a_line_and_no_floor() -> None:
    assert fit([1e6, 1e8], [4.0, 2.0]).floor == 0.0
    assert fit([1e6, 1e8], [4.0, 2.0])(1e10) == pytest.approx(1.0)


def test_a_law_is_written_as_one_reads_it() -> None:
    assert str(Law(2.57, 0.048)) == "2.57 x^-0.0480"
    assert str(Law(113.4, 0.2833, 1.94)) == "1.94 + 113.4 x^-0.2833"


@pytest.mark.parametrize(
    ("x", "loss"), [([1e6], [4.0]), ([1e6, 1e6], [4.0, 3.0]), ([1e6, 1e7], [4.0, math.nan]), ([0.0, 1e7], [4.0, 3.0])]
)
def test_where_nothing_can_be_fitted_that_is_said(x: list[float], loss: list[float]) -> None:
    with pytest.raises(UserError, match="two different sizes at least"):
        fit(x, loss)
