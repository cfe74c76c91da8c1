"""Continuous batching over a runner that checks every page: random schedules, and the rules one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from fake_runner import BYTES, LETTERS, FakeRunner, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.errors import UserError
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


def drafter_of(kind: str, context_length: int, seed: int, band: int) -> Drafter | None:
    if kind == "lookup":
        return PromptLookup()
    if kind == "wild":
        return Wild(seed)
    if kind == "smaller":
        context_length = max(1, context_length - 5)
        return SmallerModel(FakeRunner(5, context_length, max_tokens=9, max_outputs=2, band=band))
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
    pools = engine.scheduler.pages, engine.scheduler.rings
    return all(pages.free == pages.count and not any(pages._holders) for pages in pools) and not engine._jobs


@settings(max_examples=SCHEDULES, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 2**30), min_size=1, max_size=7),
    st.integers(1, 14),
    st.sampled_from([1, 2, 5, 16, 31, 48, 64]),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(["none", "lookup", "wild", "smaller"]),
    st.sampled_from([0, 0, 1, 5, 16, 40]),
    st.sampled_from([0, 1, 7, 16]),
)
def test_random_schedules_write_what_the_plain_loop_writes_and_leak_no_page(
    seeds: list[int],
    pages: int,
    context: int,
    max_tokens: int,
    max_outputs: int,
    streams: int,
    kind: str,
    band: int,
    max_span: int,
) -> None:
    runner = FakeRunner(pages, context, max_tokens, max_outputs, band=band, max_span=max_span)
    engine = Engine((runner, BYTES), streams, drafter_of(kind, context, seeds[0], band))
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
        room = engine.drafter.room
        assert room.pages.free == 5 and room.rings.free == room.rings.count and not engine.drafter._readings


# ---- the rules one by one ----


GREEDY = {"temperature": 0.0, "ignore_eot": True}


def engine_of(pages: int = 40, streams: int = 16, **limits: int) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(pages, **limits)
    return Engine((runner, BYTES), streams), runner


def lengths(runner: FakeRunner, step: int = -1) -> list[int]:
    return [len(span.tokens) for span in runner.steps[step]]


def test_those_that_write_go_first_and_prompts_fill_the_step() -> None:
    engine, runner = engine_of(max_tokens=20)
    for count in (3, 30, 4):
        engine.add([97 + count] * count, SamplingParams(max_new_tokens=9, **GREEDY))
        engine.step()
    assert [lengths(runner, step) for step in range(3)] == [[3], [1, 19], [1, 11, 4]]
    assert [[span.outputs for span in spans] for spans in runner.steps] == [[1], [1, 0], [1, 1, 1]]


def test_streams_that_end_make_room_for_the_next_at_once() -> None:
    engine, runner = engine_of(streams=4)
    lasting = [SamplingParams(max_new_tokens=2 + 3 * place, **GREEDY) for place in range(12)]
    engine.generate([[97 + place] for place in range(12)], lasting)
    assert all(len(spans) == 4 for spans in runner.steps[:-30])
    busy = sum(len(spans) for spans in runner.steps) / len(runner.steps)
    assert busy > 3.4  # the longest come first, so few are left alone at the end


def test_the_youngest_gives_way_when_pages_run_out_and_is_read_again() -> None:
    engine, runner = engine_of(pages=5, context_length=64)
    params = SamplingParams(max_new_tokens=40, **GREEDY)
    old, young = engine.add([97] * 10, params), engine.add([98] * 10, params)
    while engine.step():
        assert not (young.over and not old.over)
    assert engine.stats.preemptions == 1
    for job, prompt in ((old, [97] * 10), (young, [98] * 10)):
        assert pieces_of(job)[1][0] == plain(runner.config, prompt, params)[0]


def test_many_short_ones_do_not_starve_a_long_one() -> None:
    engine, _ = engine_of(pages=4, context_length=64, max_tokens=16, streams=3)
    long = engine.add([97] * 40, SamplingParams(max_new_tokens=24, **GREEDY))
    steps = 0
    while not long.over:
        engine.add([98 + steps % 5] * 7, SamplingParams(max_new_tokens=3, **GREEDY))
        engine.step()
        steps += 1
    assert steps == 3 + 23


def test_a_long_prompt_at_the_head_is_not_passed_over_by_short_ones_behind_it() -> None:
    engine, _ = engine_of(pages=4, context_length=64)
    params = SamplingParams(max_new_tokens=8, **GREEDY)
    engine.add([97] * 30, params)
    long, short = engine.add([98] * 56, params), engine.add([99], params)
    while not long.over:
        engine.step()
        assert not short.inbox or long.inbox


def test_one_is_let_in_only_if_those_that_run_can_go_on_for_a_page() -> None:
    engine, runner = engine_of(pages=4, context_length=64)
    params = SamplingParams(max_new_tokens=12, **GREEDY)
    engine.generate([[97] * 15, [98] * 15, [99] * 15], params)
    assert engine.stats.preemptions == 0
    assert max(len(spans) for spans in runner.steps) == 2


def test_what_can_never_fit_is_refused_with_a_way_out() -> None:
    engine, runner = engine_of(pages=2, context_length=64)
    with pytest.raises(UserError, match=r"need room for 33 tokens, the engine has it for 32; .*pages=3"):
        engine.add([97] * 30, SamplingParams(max_new_tokens=4))
    assert not runner.steps
    assert len(engine.generate([[97] * 30], SamplingParams(max_new_tokens=3, **GREEDY))[0].tokens) == 3


def test_prompts_that_begin_alike_are_read_once_as_far_as_they_do() -> None:
    engine, runner = engine_of(max_tokens=200, context_length=128)
    prompts = [[*range(97, 97 + 40), 65 + place] for place in range(8)]
    engine.generate(prompts, SamplingParams(max_new_tokens=1, **GREEDY))
    assert [lengths(runner, step) for step in range(2)] == [[41], [9] * 7]
    assert engine.stats.shared == 7 * 32


def test_a_prompt_that_comes_again_finds_its_pages() -> None:
    engine, runner = engine_of()
    params = SamplingParams(max_new_tokens=1, **GREEDY)
    engine.generate([[97] * 33], params)
    engine.generate([[97] * 33 + [98]], params)
    assert lengths(runner) == [2]
    engine.generate([[97] * 32], params)  # the last token is read in any case: its logits are wanted
    assert lengths(runner) == [16]


def test_samples_share_the_reading_of_their_prompt_and_copy_its_half_filled_page() -> None:
    engine, runner = engine_of(pages=10)
    engine.generate([[97] * 20], SamplingParams(max_new_tokens=9, n=4, seed=1, ignore_eot=True))
    assert lengths(runner, 0) == [20] and lengths(runner, 1) == [1] * 4
    first, second = zip(*(span.pages[:2] for span in runner.steps[1]), strict=True)
    assert len(set(first)) == 1 and len(set(second)) == 4


def test_samples_for_which_there_is_no_room_wait() -> None:
    engine, runner = engine_of(pages=4, streams=2)
    params = SamplingParams(max_new_tokens=20, n=7, seed=1)
    assert engine.generate([[97] * 20], params) == plain(runner.config, [97] * 20, params)
    assert max(len(spans) for spans in runner.steps) == 2


def test_one_that_is_cancelled_gives_its_pages_to_the_next() -> None:
    engine, _ = engine_of(pages=2, context_length=32)
    params = SamplingParams(max_new_tokens=10, **GREEDY)
    first, second = engine.add([97] * 17, params), engine.add([98] * 17, params)
    engine.step()
    assert first.inbox and not second.inbox
    engine.cancel(first)
    assert first.over
    engine.step()
    assert second.inbox and not second.over


def test_a_page_is_shared_only_when_all_of_it_has_been_read() -> None:
    engine, runner = engine_of()
    engine.add([97] * 15, SamplingParams(max_new_tokens=9, **GREEDY))
    engine.step()  # 15 are read, the 16th is written and not yet read
    (request,) = engine.scheduler.running
    engine.add([*request.window, 97], SamplingParams(max_new_tokens=9, **GREEDY))
    engine.step()
    assert sorted(lengths(runner)) == [1, 17]


def test_a_slid_window_is_read_again_in_chunks_beside_the_others() -> None:
    engine, runner = engine_of(context_length=32, max_tokens=10)
    params = SamplingParams(max_new_tokens=40, **GREEDY)
    results = engine.generate([[97] * 5, [98] * 31], params)
    assert results == plain(runner.config, [97] * 5, params) + plain(runner.config, [98] * 31, params, place=1)
