"""Beam search finds what transformers' finds, on shared pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import BYTES, TINY, make, transformers_twin

from gpt2.errors import UserError
from gpt2.inference.beam import BeamParams, beam_search, score
from gpt2.inference.pages import Pages
from gpt2.inference.request import Span
from gpt2.inference.rows import Result
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.sampling import Choice, SamplingParams
from gpt2.model.gpt import GPT

PROMPTS = [b"Once", b"a", b"The sea was very still that morning, and", b"x" * 16]


def ending_model(seed: int, likely: float) -> GPT:
    """A model whose texts end now and then: `likely` pulls the head's row of end-of-text towards the usual output."""
    module = make(scale=8.0, seed=seed, tie_head=False)
    with torch.no_grad():
        hidden = module.body(torch.tensor([list(PROMPTS[2])]))[0]
        module.lm_head.weight[BYTES.eot_id] += likely * hidden.mean(0) / hidden.mean(0).norm()
    return module


def search(module: GPT, prompts: Sequence[bytes], beams: BeamParams, pages: int = 200, **settings: Any) -> list[Result]:
    runner = TorchRunner(module, pages, max_tokens=24)
    return beam_search(runner, BYTES, [list(prompt) for prompt in prompts], SamplingParams(**settings), beams)


@torch.no_grad()
def theirs(module: GPT, prompt: bytes, beams: BeamParams, count: int, n: int, ignore_eot: bool = False) -> Any:
    """transformers' n best (tokens, score)."""
    ids = torch.tensor([list(prompt)])
    found = transformers_twin(module).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=beams.num_beams,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        num_return_sequences=n,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None if ignore_eot else BYTES.eot_id,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return [row[len(prompt) :].tolist() for row in found.sequences], found.sequences_scores.tolist()


CASES = {
    "the paper's": BeamParams(4, 0.6),
    "early": BeamParams(4, 0.6, early_stopping=True),
    "no penalty": BeamParams(3, 0.0),
    "short ones": BeamParams(4, -1.0),
    "long ones": BeamParams(2, 2.0),
    "wide": BeamParams(9, 1.0),
}


@pytest.mark.parametrize("beams", CASES.values(), ids=CASES)
@pytest.mark.parametrize("likely", [0.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_texts_and_scores_are_transformers(seed: int, likely: float, beams: BeamParams) -> None:
    module = ending_model(seed, likely)
    results = search(module, PROMPTS, beams, n=2, max_new_tokens=20)
    for place, prompt in enumerate(PROMPTS):
        tokens, scores = theirs(module, prompt, beams, 20, n=2)
        for result, theirs_tokens, theirs_score in zip(results[2 * place :], tokens, scores, strict=False):
            assert theirs_tokens[: len(result.tokens)] == result.tokens
            assert set(theirs_tokens[len(result.tokens) :]) <= {BYTES.eot_id}  # padding
            own = [Choice(*pair) for pair in zip(result.tokens, result.logprobs, strict=True)]
            assert score(own, beams.length_penalty) == pytest.approx(theirs_score, rel=1e-5, abs=1e-5)


def test_the_cases_end_in_different_ways() -> None:
    """Else the comparison above would say little."""
    results = [
        result for likely in (0.0, 2.5) for result in search(ending_model(0, likely), PROMPTS, BeamParams(), n=2)
    ]
    assert {result.finish_reason for result in results} == {"eot", "overflow"}
    assert len({len(result.tokens) for result in results if result.finish_reason == "eot"}) > 1


def test_end_of_text_may_be_ignored() -> None:
    module = ending_model(0, 2.5)
    (result,) = search(module, PROMPTS[:1], BeamParams(), max_new_tokens=20, ignore_eot=True)
    (tokens,), _ = theirs(module, PROMPTS[0], BeamParams(), 20, n=1, ignore_eot=True)
    assert (result.tokens, result.finish_reason) == (tokens, "length")


def test_four_beams_find_a_likelier_text_than_the_greedy_one() -> None:
    module = make(scale=8.0)
    (greedy,) = beam_totals(search(module, PROMPTS[:1], BeamParams(2, 0.0), max_new_tokens=20))
    (wide,) = beam_totals(search(module, PROMPTS[:1], BeamParams(12, 0.0), max_new_tokens=20))
    assert wide >= greedy


def beam_totals(results: Sequence[Result]) -> list[float]:
    return [sum(result.logprobs) for result in results]


@pytest.mark.parametrize("pages", [13, 20, 27, 200])
def test_few_pages_only_make_prompts_wait(pages: int) -> None:
    module = ending_model(1, 2.5)
    expected = search(module, PROMPTS, BeamParams(), n=4, max_new_tokens=20)
    found = search(module, PROMPTS, BeamParams(), pages, n=4, max_new_tokens=20)
    assert [result.tokens for result in found] == [result.tokens for result in expected]


def test_pages_are_given_back_and_full_ones_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[Pages] = []
    steps: list[list[Span]] = []
    made, step = Pages.__init__, TorchRunner.step
    monkeypatch.setattr(Pages, "__init__", lambda self, count: pools.append(self) or made(self, count))
    monkeypatch.setattr(
        TorchRunner, "step", lambda self, spans: steps.append([*map(frozen, spans)]) or step(self, spans)
    )
    search(make(scale=8.0), [PROMPTS[2]], BeamParams(), max_new_tokens=20)
    assert all(pool.free == pool.count for pool in pools) and len(pools) == 2  # one is for rings
    for spans in steps[2:]:  # the prompt's 40 tokens take two
        assert len(spans) == 4
        assert len({tuple(span.pages[:2]) for span in spans}) == 1
        assert len({span.pages[-1] for span in spans}) == 4


def frozen(span: Span) -> Span:
    return Span(span.tokens, span.start, tuple(span.pages), span.outputs)


def test_the_context_ends_the_texts() -> None:
    module, prompt = make(scale=8.0), list(b"y" * (TINY.context_length - 3))
    (result,) = beam_search(TorchRunner(module, 30), BYTES, [prompt], SamplingParams(ignore_eot=True))
    assert (len(result.tokens), result.finish_reason) == (3, "overflow")


@pytest.mark.parametrize(
    ("changes", "beams", "message"),
    [
        ({"temperature": 0.7}, {}, "temperature = 0.7: beam search draws nothing"),
        ({"top_p": 0.9}, {}, "top_p = 0.9"),
        ({"seed": 1}, {}, "seed = 1"),
        ({"stop": "a"}, {}, "stop = "),
        ({"repetition_penalty": 1.1}, {}, "repetition_penalty = 1.1"),
        ({"logprobs": 2}, {}, "logprobs = 2"),
        ({"n": 5}, {}, "n = 5: beam search with 4 beams"),
        ({}, {"num_beams": 1}, "num_beams = 1: must be at least 2"),
        ({}, {"num_beams": 129}, "num_beams = 129: at most half the vocabulary"),
        ({}, {"num_beams": 120}, "take fewer beams or fewer tokens"),
    ],
)
def test_what_cannot_be_combined_is_refused(changes: dict[str, Any], beams: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(make(), PROMPTS, BeamParams(**beams), **changes)


def test_sliding_is_refused() -> None:
    with pytest.raises(UserError, match="cannot slide"):
        beam_search(TorchRunner(make(), 30), BYTES, ["a"], overflow="slide")


def test_greedy_settings_are_no_contradiction_and_no_prompts_no_work() -> None:
    assert search(make(), [], BeamParams(), temperature=0) == []
