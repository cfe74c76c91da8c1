"""Tokens chosen without torch are those that torch chooses, by the kernels and by numpy alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.inference import choose as choosing
from gpt2.inference.choose import Ask, choose_rows
from gpt2.inference.sampling import Choice, SamplingParams, choose
from gpt2.kernels.survey import BLOCK, survey_rows

VOCABULARY = 3000
WAYS = ["kernels", "numpy"]


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test runs with the compiled kernels and without numba."""
    if request.param == "numpy":
        monkeypatch.setattr(choosing, "load_kernels", lambda: None)
    yield request.param


def make_logits(rows: int = 8, scale: float = 3.0, step: float = 0.0, seed: int = 0) -> np.ndarray:
    """Random rows, three columns wider than the vocabulary; `step` rounds them, so that many are equal."""
    logits = scale * np.random.default_rng(seed).standard_normal((rows, VOCABULARY + 3))
    return (np.round(logits / step) * step if step else logits).astype(np.float32)


def ask_all(logits: np.ndarray, params: SamplingParams, seed: int = 0) -> list[Ask]:
    history = random.Random(seed)
    tokens = [[history.randrange(VOCABULARY) for _ in range(20)] for _ in logits]
    return [Ask(row, past[:10], past[10:] + past[10:12], params, random.Random(row)) for row, past in enumerate(tokens)]


def by_torch(logits: np.ndarray, asks: list[Ask]) -> list[Choice]:
    """Each ask by the oracle, row by row."""
    return [
        choice
        for ask in asks
        for choice in choose(
            torch.from_numpy(logits[ask.row : ask.row + 1, :VOCABULARY]),
            [ask.prompt],
            [ask.output],
            ask.params,
            [random.Random(ask.row)],
        )
    ]


def assert_same(logits: np.ndarray, params: SamplingParams, seed: int = 0) -> None:
    ours = choose_rows(logits, ask_all(logits, params, seed), VOCABULARY)
    theirs = by_torch(logits, ask_all(logits, params, seed))
    assert [choice.token for choice in ours] == [choice.token for choice in theirs]
    assert [choice.logprob for choice in ours] == pytest.approx([choice.logprob for choice in theirs], abs=1e-5)
    for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-5)
        ours_top, theirs_top = ([float(logits[row, token]) for token, _ in choice.top] for choice in (one, other))
        assert ours_top == pytest.approx(theirs_top, abs=1e-5)  # of nearly equal ones torch takes any


FILTERS = {
    "greedy": {"temperature": 0},
    "default": {},
    "top_k 1": {"top_k": 1},
    "top_k of most": {"top_k": VOCABULARY - 1},
    "top_k past the vocabulary": {"top_k": 10**6},
    "all": {"top_k": 0, "temperature": 1.3},
    "top_p": {"top_k": 0, "top_p": 0.60013},
    "top_p of most": {"top_k": 0, "top_p": 0.99013, "temperature": 2.0},
    "top_p next to nothing": {"top_k": 0, "top_p": 1e-6},
    "min_p": {"top_k": 0, "min_p": 0.02},
    "min_p 1": {"top_k": 0, "min_p": 1.0},
    "top_k, top_p, min_p": {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7},
    "top_p, min_p": {"top_k": 0, "top_p": 0.80013, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3, "logprobs": 4},
    "greedy with penalties": {"temperature": 0, "repetition_penalty": 0.2, "logprobs": 2},
    "cold": {"temperature": 1e-5},
    "hot": {"temperature": 1e35},
    "all logprobs": {"logprobs": VOCABULARY + 10},
    "no logprobs": {"logprobs": 0},
}


@pytest.mark.parametrize("step", [0.0, 0.5, 100.0], ids=["different", "ties", "all equal"])
@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS)
def test_the_same_token_and_log_probability_as_torch(settings: dict[str, float], step: float) -> None:
    assert_same(make_logits(step=step), SamplingParams(**settings))


@given(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.7]),
        top_k=st.sampled_from([0, 1, 5, 50, 600, 2999]),
        top_p=st.sampled_from([1.0, 0.95017, 0.50017, 0.05017]),
        min_p=st.sampled_from([0.0, 0.001, 0.1, 0.7]),
        repetition_penalty=st.sampled_from([1.0, 0.8, 1.5]),
        presence_penalty=st.sampled_from([0.0, 1.0, -0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.2]),
        logprobs=st.sampled_from([None, 3]),
    ),
    st.sampled_from([0.3, 3.0, 12.0]),
    st.sampled_from([0.0, 0.25]),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_any_mixture_of_settings_is_torchs(params: SamplingParams, scale: float, step: float, seed: int) -> None:
    assert_same(make_logits(3, scale, step, seed), params, seed)


def test_rows_may_differ_in_their_settings_and_be_asked_about_in_any_order() -> None:
    logits, params = make_logits(), [SamplingParams(**filters) for filters in FILTERS.values()]
    asks = [Ask(place * 5 % 8, [1, 2], [3], one, random.Random(place * 5 % 8)) for place, one in enumerate(params)]
    ours = choose_rows(logits, asks, VOCABULARY)
    assert [choice.token for choice in ours] == [choice.token for choice in by_torch(logits, asks)]


def test_a_row_draws_once_and_a_greedy_one_never() -> None:
    sampled, greedy = random.Random(1), random.Random(1)
    asks = [Ask(0, [1], [], SamplingParams(), sampled), Ask(0, [1], [], SamplingParams(temperature=0), greedy)]
    choose_rows(make_logits(1), asks, VOCABULARY)
    expected = random.Random(1)
    assert greedy.getstate() == expected.getstate()
    expected.random()
    assert sampled.getstate() == expected.getstate()


def test_of_equal_logits_the_first_token_is_taken() -> None:
    logits = np.full((1, VOCABULARY), -0.0, np.float32)
    logits[0, 7:] = 0.0
    (choice,) = choose_rows(logits, [Ask(0, [], [], SamplingParams(temperature=0), random.Random())], VOCABULARY)
    assert choice.token == 0


def test_every_token_can_be_drawn_and_one_of_no_probability_never_is() -> None:
    class Fixed(random.Random):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = number

        def random(self) -> float:
            return self.number

    logits = np.full((1, 200), -math.inf, np.float32)
    kept = [3, 64, 130, 199]
    logits[0, kept] = 1.0
    for params in (SamplingParams(top_k=0), SamplingParams(top_k=100), SamplingParams(top_k=0, min_p=0.5)):
        numbers = [0.0, 0.26, 0.51, 1 - 2**-53]
        asks = [Ask(0, [], [], params, Fixed(number)) for number in numbers]
        assert [choice.token for choice in choose_rows(logits, asks, 200)] == kept


@pytest.mark.parametrize("place", [0, 1, 63, 64, 2990, VOCABULARY - 1])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf], ids=["nan", "-nan", "inf"])
def test_one_logit_that_is_not_a_number_is_an_error(place: int, value: float) -> None:
    logits = make_logits(2)
    logits[1, place] = np.copysign(np.float32(value), np.float32(math.copysign(1, value)))
    for params in (SamplingParams(), SamplingParams(temperature=0)):
        with pytest.raises(UserError, match="not a number"):
            choose_rows(logits, ask_all(logits, params), VOCABULARY)


def test_what_lies_past_the_vocabulary_is_not_looked_at() -> None:
    logits = make_logits()
    logits[:, VOCABULARY:] = math.nan
    assert_same(logits, SamplingParams())


def test_a_survey_made_before_changes_nothing() -> None:
    logits, params = make_logits(), SamplingParams(temperature=0.8, top_k=40)
    found = np.empty((len(logits), -(-VOCABULARY // BLOCK)), np.float32), np.empty(len(logits), np.float32)
    survey = *found, np.empty(len(logits))
    survey_rows(logits, VOCABULARY, *survey)
    before = choose_rows(logits, ask_all(logits, params), VOCABULARY, survey)
    assert before == choose_rows(logits, ask_all(logits, params), VOCABULARY)


def test_no_question_no_answer() -> None:
    assert choose_rows(make_logits(1), [], VOCABULARY) == []


def test_without_numba_a_line_says_so(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "kernels":
        pytest.skip("takes the kernels away itself: once is enough, the other way runs it")
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "gpt2.kernels.choose", None)
    monkeypatch.delattr("gpt2.kernels.choose", raising=False)
    choosing.load_kernels.cache_clear()
    try:
        assert choosing.load_kernels() is None
        assert choosing.load_kernels() is None
    finally:
        choosing.load_kernels.cache_clear()
    assert capsys.readouterr().err.count("numba cannot be used") == 1
