"""The power laws: found again where they were put in, and refused where there is none to be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.train.scaling import Law, fit, floor_of

laws = st.builds(Law, st.floats(1.0, 200.0), st.floats(0.03, 0.6))
starts = st.floats(1e4, 1e12)
FACTORS = np.array([1.0, 2.3, 4.6, 8.3])  # the default ladder's parameters


@given(laws, starts, st.integers(2, 6), st.floats(0.0, 0.5))
def test_a_law_over_its_floor_is_found_again(law: Law, start: float, count: int, share: float) -> None:
    x = [start * 3.0**n for n in range(count)]
    law = Law(law.scale, law.exponent, share * law(x[-1]))  # at most half of the lowest loss
    found = fit(x, [law(each) for each in x], law.floor)
    assert found.floor == law.floor and found.exponent == pytest.approx(law.exponent, rel=1e-6)
    assert found(x[-1] * 10) == pytest.approx(law(x[-1] * 10), rel=1e-6)


@given(st.lists(st.floats(-0.007, 0.007), min_size=4, max_size=4), st.floats(0.6, 1.6))
@example([0.007, -0.007, -0.007, -0.007], 1.6)
@example([-0.007, 0.007, 0.007, 0.007], 0.6)
def test_noise_and_another_floor_move_the_prediction_by_less_than_three(noise: list[float], floor: float) -> None:
    x = [1.5e11, 7.8e11, 3.1e12, 1.0e13]  # FLOPs of a ladder on Python's library
    law = fit(x, [5.32, 4.57, 4.06, 3.70], floor)
    found = fit(x, [law(a) * (1 + e) for a, e in zip(x, noise, strict=True)], floor_of(3.19))
    assert found(5.3e13) == pytest.approx(law(5.3e13), rel=0.03)


@given(laws, starts)
def test_units_do_not_matter(law: Law, start: float) -> None:
    x = list(start * FACTORS)
    loss = [law(each) * (1 + 0.002 * (-1) ** n) for n, each in enumerate(x)]
    in_flops, in_pf_days = fit(x, loss, 0.1), fit([each / 8.64e19 for each in x], loss, 0.1)
    assert in_flops.floor == in_pf_days.floor
    assert in_flops(5 * x[-1]) == pytest.approx(in_pf_days(5 * x[-1] / 8.64e19), rel=1e-6)


def test_the_floor_is_the_published_one_for_tokens_of_this_length_and_leaves_room() -> None:
    assert floor_of(None) == floor_of(4.47) == 1.69
    assert floor_of(2.235) == pytest.approx(0.845)
    assert fit([1e6, 1e8], [4.0, 2.0], 1.69).floor == 1.0
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
