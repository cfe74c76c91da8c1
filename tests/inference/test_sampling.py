"""Each filter means what transformers' of that name means; the penalties are OpenAI's; draws are each row's own."""

from __future__ import annotations

import math
import random

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpt2.errors import UserError
from gpt2.inference.sampling import SamplingParams, choose, draw, min_p, penalise, restrict, top_k, top_p

NEUTRAL = {"temperature": 1.0, "top_k": 0}


def logits(rows: int = 6, vocabulary: int = 300, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("k", [1, 7, 299, 300, 1000])
def test_top_k_is_transformers(k: int) -> None:
    assert torch.equal(top_k(logits(), k), transformers.TopKLogitsWarper(k)(None, logits()))


def test_top_k_keeps_ties_as_transformers_does() -> None:
    tied = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert torch.equal(top_k(tied, 1), transformers.TopKLogitsWarper(1)(None, tied))


@pytest.mark.parametrize("p", [0.001, 0.3, 0.9, 0.999])
def test_top_p_is_transformers(p: float) -> None:
    assert torch.equal(top_p(logits(), p), transformers.TopPLogitsWarper(p)(None, logits()))


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p_is_transformers(p: float) -> None:
    assert torch.equal(min_p(logits(), p), transformers.MinPLogitsWarper(p)(None, logits()))


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    history = torch.tensor([[1, 5, 5, 9], [2, 2, 2, 0], [7, 8, 9, 299]])
    ours = penalise(
        logits(3), history[:, :2].tolist(), history[:, 2:].tolist(), SamplingParams(repetition_penalty=penalty)
    )
    assert torch.equal(ours, transformers.RepetitionPenaltyLogitsProcessor(penalty)(history, logits(3)))


def test_all_filters_in_a_row_are_transformers_in_its_order() -> None:
    params = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)
    theirs = logits()
    for warper in (
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(40),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.05),
    ):
        theirs = warper(None, theirs)
    assert torch.equal(restrict(logits(), params), theirs)


def test_presence_and_frequency_count_the_output_only() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    changed = penalise(torch.zeros(2, 5), [[0, 0], [1]], [[3, 3, 4], []], params)
    assert changed.tolist() == [[0, 0, 0, -1.0, -0.75], [0, 0, 0, 0, 0]]


def test_penalties_leave_the_given_logits_as_they_are() -> None:
    before = logits(1)
    penalise(before, [[1]], [[2]], SamplingParams(repetition_penalty=2.0, presence_penalty=1.0))
    assert torch.equal(before, logits(1))


def test_temperature_0_takes_the_likeliest_after_penalties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    params = SamplingParams(temperature=0, presence_penalty=2.0)
    assert choose(scores, [[0]], [[]], params, [random.Random(0)])[0].token == 1
    assert choose(scores, [[0]], [[1]], params, [random.Random(0)])[0].token == 2


def test_logprobs_are_the_models_own_whatever_the_filters() -> None:
    params = SamplingParams(temperature=0.1, top_k=1, logprobs=3, presence_penalty=1.0)
    (choice,) = choose(logits(1), [[1]], [[5]], params, [random.Random(0)])
    own = logits(1).log_softmax(-1)[0]
    assert choice.logprob == pytest.approx(float(own[choice.token]))
    values, tokens = own.topk(3)
    assert [token for token, _ in choice.top] == tokens.tolist()
    assert [value for _, value in choice.top] == pytest.approx(values.tolist())


def test_draws_have_the_distribution_of_the_logits() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05])
    stream = random.Random(1)
    drawn = draw(probabilities.log().expand(20_000, -1), [stream] * 20_000)
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / 20_000
    assert shares[2] == 0
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.012)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 9))
def test_a_filtered_out_token_is_never_drawn(number: float, kept: int) -> None:
    class Fixed(random.Random):
        def random(self) -> float:
            return number

    scores = torch.full((1, 10), -math.inf)
    scores[0, kept] = 0.3
    assert draw(scores, [Fixed()]) == [kept]


def test_a_row_draws_the_same_whatever_its_neighbours() -> None:
    params = SamplingParams(seed=3, **NEUTRAL)
    alone = choose(logits(1), [[0]], [[]], params, [params.random_stream(1)])
    among = choose(logits(1).expand(4, -1), [[0]] * 4, [[]] * 4, params, [params.random_stream(n) for n in range(4)])
    assert alone[0].token == among[1].token
    assert len({choice.token for choice in among}) > 1


def test_streams_follow_from_seed_and_sample_alone_and_are_new_without_a_seed() -> None:
    assert SamplingParams(seed=1).random_stream(0).random() == SamplingParams(seed=1, n=5).random_stream(0).random()
    numbers = [SamplingParams(seed=seed).random_stream(n).random() for seed in range(5) for n in range(5)]
    assert len(set(numbers)) == 25
    assert SamplingParams().random_stream(0).random() != SamplingParams().random_stream(0).random()


def test_output_that_is_not_a_number_is_an_error_and_no_token() -> None:
    with pytest.raises(UserError, match="not a number"):
        choose(torch.full((1, 4), math.nan), [[0]], [[]], SamplingParams(), [random.Random(0)])


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures_still_choose_a_token(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=0)
    (choice,) = choose(logits(1), [[0]], [[]], params, [random.Random(0)])
    assert 0 <= choice.token < 300


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"max_new_tokens": True}, {"temperature": -0.1},
        {"temperature": math.nan}, {"temperature": "hot"}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -1},
        {"min_p": 2}, {"repetition_penalty": 0}, {"presence_penalty": math.inf}, {"frequency_penalty": math.nan},
        {"n": 0}, {"logprobs": -1}, {"seed": 0.5}, {"stop": ("",)}, {"stop": (3,)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(setting))} = .*: must be"):
        SamplingParams(**setting)


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
