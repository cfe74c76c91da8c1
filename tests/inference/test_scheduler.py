"""Continuous batching over a runner that checks every page: random schedules, and the rules one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fake_runner import BYTES, LETTERS, FakeRunner, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.inference.engine import Engine
from gpt2.inference.jobs import Job
from gpt2.inference.request import PAGE_SIZE, Request
from gpt2.inference.rows import Piece, Result
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.speculate import Drafter, PromptLookup, SmallerModel

SCHEDULES = 1200


class Wild:
    """Drafts anything, sometimes the truth."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def propose(self, wants: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        return [[self.random.choice(LETTERS) for _ in range(self.random.randint(0, max(0, n)))] for _, n in wants]

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        assert 0 <= accepted <= drafted

    def forget(self, request: Request) -> None:
        pass


@dataclass
class Visit:
    """A prompt that comes at one step and may be cancelled at a later one."""

    prompt: list[int]
    params: SamplingParams
    comes: int
    leaves: int | None
    job: Job | None = None


def visit(seed: int) -> Visit:
    """Prompts of a few families, so that many begin alike."""
    pick = random.Random(seed)
    family = pick.choice([b"abcde", b"aab", b"ed"])
    prompt = (family * 30)[: pick.choice([pick.randint(1, 10), pick.randint(1, 60)])] + pick.choice([b"", b"a", b"cd"])
    params = SamplingParams(
        max_new_tokens=pick.randint(1, pick.choice([4, 45])),
        temperature=pick.choice([0.0, 1.0]),
        n=pick.choice([1, 1, 1, 2, 5]),
        stop=pick.choice([(), (), ("aa",), ("bcd", "dd")]),
        presence_penalty=pick.choice([0.0, 0.0, 1.0]),
        seed=pick.randint(0, 3),
    )
    return Visit(list(prompt), params, pick.randint(0, 20), pick.choice([None, None, pick.randint(0, 30)]))


def drafter_of(kind: str, context_length: int, seed: int) -> Drafter | None:
    if kind == "lookup":
        return PromptLookup()
    if kind == "wild":
        return Wild(seed)
    if kind == "smaller":
        return SmallerModel(FakeRunner(5, context_length=max(1, context_length - 5), max_tokens=9, max_outputs=2))
    return None


def fits(visit: Visit, pages: int, context_length: int) -> bool:
    longest = min(context_length, min(len(visit.prompt), context_length) + visit.params.max_new_tokens - 1)
    return longest <= pages * PAGE_SIZE


def pieces_of(job: Job) -> tuple[dict[int, str], dict[int, Result]]:
    texts: dict[int, str] = {}
    results: dict[int, Result] = {}
    for piece in job.inbox:
        assert isinstance(piece, Piece)
        assert piece.row not in results
        texts[piece.row] = texts.get(piece.row, "") + piece.text
        if piece.result:
            results[piece.row] = piece.result
    return texts, results


def check(visit: Visit, runner: FakeRunner) -> None:
    """Its rows equal the plain loop's; those of a cancelled one as far as they go."""
    assert visit.job is not None
    texts, results = pieces_of(visit.job)
    expected = plain(runner.config, visit.prompt, visit.params)
    if visit.leaves is None:
        assert [results[row] for row in sorted(results)] == expected
    for row, text in texts.items():
        assert expected[row].text.startswith(text)


def empty(engine: Engine) -> bool:
    pages = engine.scheduler.pages
    return pages.free == pages.count and not any(pages._holders) and not engine._jobs


@settings(max_examples=SCHEDULES, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 2**30), min_size=1, max_size=7),
    st.integers(1, 14),
    st.sampled_from([1, 2, 5, 16, 31, 48, 64]),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(["none", "lookup", "wild", "smaller"]),
)
def test_random_schedules_write_what_the_plain_loop_writes_and_leak_no_page(
    seeds: list[int], pages: int, context: int, max_tokens: int, max_outputs: int, streams: int, kind: str
) -> None:
    runner = FakeRunner(pages, context, max_tokens, max_outputs)
    engine = Engine((runner, BYTES), streams, drafter_of(kind, context, seeds[0]))
    visits = [visit(seed) for seed in seeds if fits(visit(seed), pages, context)]
    for step in range(5000):
        for each in visits:
            if each.comes == step:
                each.job = engine.add(each.prompt, each.params)
            if each.job and each.leaves is not None and step == each.comes + each.leaves:
                engine.cancel(each.job)
        if not engine.step() and step > 50:
            break
    else:
        raise AssertionError("it never ends")
    for each in visits:
        check(each, runner)
    assert empty(engine)
    if isinstance(engine.drafter, SmallerModel):
        assert engine.drafter._pages.free == 5 and not engine.drafter._readings
