"""The engine against the plain loop on real models, and what happens to the others when one goes or fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch
from fake_runner import FakeRunner, plain
from tiny_models import BYTES, make

from gpt2.errors import UserError
from gpt2.inference.choose import Ask
from gpt2.inference.engine import Engine
from gpt2.inference.generate import Result, generate
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.sampling import Choice, SamplingParams
from gpt2.inference.speculate import Drafter, PromptLookup, SmallerModel
from gpt2.model.gpt import GPT
from gpt2.tokenizer.bpe import Tokenizer

SETTINGS = {
    "greedy": SamplingParams(max_new_tokens=24, temperature=0),
    "sampled": SamplingParams(max_new_tokens=24, seed=5, top_p=0.95),
    "sliding": SamplingParams(max_new_tokens=90, temperature=0, ignore_eot=True),
    "several": SamplingParams(max_new_tokens=12, n=3, seed=1),
    "stopped": SamplingParams(max_new_tokens=30, seed=2, stop=("e", "\n"), top_k=0, repetition_penalty=1.3),
}
WAYS = ["alone", "batched", "chunked", "preempted", "lookup", "smaller"]


@pytest.fixture(scope="module")
def module() -> GPT:
    """It writes something, and something else for each prompt."""
    return make(scale=15.0)


def prompts(count: int = 64) -> list[bytes]:
    """Mixed lengths, a third of them with one beginning."""
    pick = random.Random(7)
    begin = b"The sea was very still and the boats lay "
    texts = [bytes(pick.choices(b"abcdefgh \n", k=pick.randint(1, 60))) for _ in range(count)]
    return [begin + text[:15] if place % 3 == 0 else text for place, text in enumerate(texts)]


PROMPTS = [list(text) for text in prompts()]
COUNTS = {"greedy": 64, "sampled": 64, "sliding": 16, "several": 24, "stopped": 24}


@pytest.fixture(scope="module")
def expected(module: GPT) -> dict[str, list[Result]]:
    return {name: generate(module, BYTES, PROMPTS[: COUNTS[name]], params) for name, params in SETTINGS.items()}


def engine_of(module: GPT, way: str) -> Engine:
    pages = 9 if way == "preempted" else 200
    runner = TorchRunner(module, pages, max_tokens=9 if way == "chunked" else 128, max_outputs=64)
    drafter: Drafter | None = PromptLookup() if way == "lookup" else None
    if way == "smaller":
        drafter = SmallerModel(TorchRunner(module, 30, max_tokens=32, max_outputs=16), price=0.0)
    return Engine((runner, BYTES), 6 if way == "chunked" else 16, drafter)


def same(one: Sequence[Result], other: Sequence[Result]) -> None:
    """All but the last bits of the log-probabilities."""
    for a, b in zip(one, other, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-3)
        fields = ("prompt", "sample", "tokens", "text", "finish_reason", "prompt_tokens", "prompt_dropped")
        assert [getattr(a, name) for name in fields] == [getattr(b, name) for name in fields]


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("way", WAYS)
def test_64_prompts_get_the_tokens_of_the_plain_loop(
    module: GPT, expected: dict[str, list[Result]], way: str, kind: str
) -> None:
    engine, params = engine_of(module, way), SETTINGS[kind]
    if way == "alone":
        results = [result for prompt in PROMPTS[: COUNTS[kind] : 8] for result in engine.generate([prompt], params)]
        wanted = [result for result in expected[kind] if result.prompt % 8 == 0]
        assert [result.tokens for result in results] == [result.tokens for result in wanted]
        return
    same(engine.generate(PROMPTS[: COUNTS[kind]], params), expected[kind])
    stats = engine.stats
    assert stats.tokens == sum(len(result.tokens) for result in expected[kind])
    assert stats.shared > 0
    assert (stats.preemptions > 0) == (way == "preempted" and kind != "several")
    assert (stats.accepted > 0) == (way in ("lookup", "smaller")) or kind == "stopped"
    if way == "smaller" and params.greedy:  # the smaller model is the model itself
        assert stats.accepted == stats.drafted
    assert engine.scheduler.pages.free == engine.runner.pages


def test_settings_may_differ_from_prompt_to_prompt(module: GPT, expected: dict[str, list[Result]]) -> None:
    names = ["greedy", "sampled", "several", "stopped"]
    params = [SETTINGS[names[place % 4]] for place in range(16)]
    results = engine_of(module, "lookup").generate(PROMPTS[:16], params)
    wanted = [result for place in range(16) for result in expected[names[place % 4]] if result.prompt == place]
    same(results, wanted)


@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_what_happens_past_the_context_is_the_plain_loops(module: GPT, overflow: str) -> None:
    params = SamplingParams(max_new_tokens=30, temperature=0, ignore_eot=True)
    texts = [[97] * 50, [98] * 63, [99] * 20, *([[100] * 70] if overflow == "slide" else [])]
    engine = engine_of(module, "lookup")
    same(engine.generate(texts, params, overflow), generate(module, BYTES, texts, params, overflow))


def test_a_bad_prompt_is_refused_before_any_is_begun(module: GPT) -> None:
    engine = engine_of(module, "batched")
    with pytest.raises(UserError, match="token id 300"):
        engine.generate(["a", [300]])
    with pytest.raises(UserError, match="leave no room"):
        engine.generate(["a", "a" * 64], overflow="stop")
    with pytest.raises(TypeError, match="list"):
        engine.generate("Once")
    with pytest.raises(ValueError, match="2 prompts, but settings for 1"):
        engine.generate(["a", "b"], [SamplingParams()])
    assert engine.generate([]) == [] and engine.stats.steps == 0


def test_a_tokenizer_that_knows_fewer_tokens_than_the_runner_chooses_from_is_refused(module: GPT) -> None:
    few = Tokenizer.from_characters(["\n", "a", "b"])
    with pytest.raises(ValueError, match="vocab_size=3"):
        Engine((TorchRunner(module, 10), few))
    runner = TorchRunner(module, 10, vocab_size=3)
    (result,) = Engine((runner, few)).generate(["ab"], SamplingParams(max_new_tokens=9, temperature=2))
    assert max(result.tokens) < 3


def test_a_stream_begins_before_all_is_written_and_closing_it_leaves_nothing_behind(module: GPT) -> None:
    engine = engine_of(module, "batched")
    pieces = engine.stream(PROMPTS, SamplingParams(max_new_tokens=20, n=2))
    next(pieces)
    assert engine.stats.steps <= 3
    pieces.close()
    assert not engine._jobs and engine.scheduler.pages.free == 200


# ---- many callers ----


LONG = SamplingParams(max_new_tokens=40, seed=3)
POISON = 7


async def collect(engine: Engine, prompt: bytes, params: SamplingParams, until: int = 1000) -> tuple[str, list[Result]]:
    """The text and results of one stream; it goes away after so many pieces."""
    text, results = "", []
    async for piece in engine.astream(list(prompt), params):
        text += piece.text
        results += [piece.result] if piece.result else []
        until -= 1
        if not until:
            break
    return text, results


def test_many_streams_at_once_each_get_their_own_and_one_that_goes_away_cancels_its_own() -> None:
    runner = FakeRunner(40)
    engine = Engine((runner, BYTES), 4)
    texts = [b"abcab", b"e", b"ddd", b"abcabd", b"bb", b"c" * 30]

    async def main() -> list[tuple[str, list[Result]]]:
        gone = asyncio.create_task(collect(engine, b"aaa", LONG, until=3))
        killed = asyncio.create_task(collect(engine, b"bbb", LONG))
        rest = [asyncio.create_task(collect(engine, text, LONG)) for text in texts]
        await asyncio.sleep(0.003)
        killed.cancel()
        await gone
        return await asyncio.gather(*rest)

    for text, (shown, results) in zip(texts, asyncio.run(main()), strict=True):
        assert results == plain(runner.config, text, LONG)
        assert shown == results[0].text
    engine.step()
    assert not engine._jobs and engine.scheduler.pages.free == 40


def test_a_stream_may_be_read_slowly_and_after_another_loop() -> None:
    engine = Engine((FakeRunner(40), BYTES))

    async def slowly() -> str:
        text = ""
        async for piece in engine.astream([97], LONG):
            text += piece.text
            await asyncio.sleep(0.001)
        return text

    assert asyncio.run(slowly()) == asyncio.run(slowly()) == plain(engine.runner.config, [97], LONG)[0].text


def test_the_error_of_one_stream_is_raised_there_and_changes_no_other() -> None:
    runner = FakeRunner(40, poison=POISON)
    engine = Engine((runner, BYTES))

    async def main() -> list[object]:
        texts = (b"abc", bytes([97, POISON]), b"abd")
        return await asyncio.gather(*(collect(engine, text, LONG) for text in texts), return_exceptions=True)

    one, failed, other = asyncio.run(main())
    assert isinstance(failed, ValueError) and str(failed) == "poisoned"
    assert one == (plain(runner.config, b"abc", LONG)[0].text, plain(runner.config, b"abc", LONG))
    assert other == (plain(runner.config, b"abd", LONG)[0].text, plain(runner.config, b"abd", LONG))
    assert engine.scheduler.pages.free == 40


class Choosy(FakeRunner):
    """Cannot choose for one prompt, and says so only after it has chosen for those before it."""

    def _choose(self, ask: Ask) -> Choice:
        choice = super()._choose(ask)
        if POISON in ask.prompt and len(ask.output) == 3:
            raise UserError("not a number")
        return choice


@pytest.mark.parametrize("drafter", [None, PromptLookup()])
def test_a_failed_choice_takes_no_random_number_from_the_others(drafter: Drafter | None) -> None:
    runner = Choosy(60)
    engine = Engine((runner, BYTES), drafter=drafter)
    texts = [b"abc", b"abcabc", bytes([97, POISON]), b"abd"]
    jobs = [engine.add(list(text), SamplingParams(max_new_tokens=40, seed=3, n=2)) for text in texts]
    while engine.step():
        pass
    for text, job in zip(texts, jobs, strict=True):
        results = [piece.result for piece in job.inbox if not isinstance(piece, Exception) and piece.result]
        if POISON in text:
            assert isinstance(job.inbox[-1], UserError) and not results
        else:
            assert sorted(results, key=lambda r: r.sample) == plain(
                runner.config, text, SamplingParams(max_new_tokens=40, seed=3, n=2)
            )
    assert engine.scheduler.pages.free == 60


def test_generate_raises_the_error_of_one_and_drops_the_rest() -> None:
    engine = Engine((FakeRunner(40, poison=POISON), BYTES))
    with pytest.raises(ValueError, match="poisoned"):
        engine.generate([b"abc", bytes([POISON])], LONG)
    assert not engine._jobs and engine.scheduler.pages.free == 40


def test_ctrl_c_in_a_step_leaves_an_engine_that_works() -> None:
    class Interrupted(FakeRunner):
        def step(self, spans: Sequence[Span]) -> None:
            if len(self.steps) == 5:
                self.steps.append([])
                raise KeyboardInterrupt
            super().step(spans)

    engine = Engine((Interrupted(40), BYTES))
    other = engine.add([98], LONG)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[97]], LONG)
    assert isinstance(other.inbox[-1], RuntimeError)
    assert engine.generate([[97]], LONG) == plain(engine.runner.config, [97], LONG)
    assert engine.scheduler.pages.free == 40


# ---- what drafts must not change ----


def test_sampled_texts_with_drafts_have_the_models_own_distribution() -> None:
    tokenizer = Tokenizer.from_characters(list("\nabcde"))
    module, smaller = (make(vocab_size=6, scale=6.0, seed=seed, context_length=PAGE_SIZE) for seed in (1, 2))
    prompt, count = [1, 2, 3], 4000
    drafter = SmallerModel(TorchRunner(smaller, 70, max_tokens=512, max_outputs=64), price=0.0)
    engine = Engine((TorchRunner(module, 200, max_tokens=512, max_outputs=256), tokenizer), 64, drafter)
    params = [SamplingParams(max_new_tokens=4, temperature=1.0, top_k=0, seed=seed) for seed in range(count)]
    texts = [tuple(result.tokens[:3]) for result in engine.generate([prompt] * count, params)]
    assert 0.1 < engine.stats.acceptance < 0.9 and engine.stats.drafted > count
    assert chi_square(module, prompt, texts) < 291  # 215 degrees of freedom: one in 2,500 would be above


def chi_square(module: GPT, prompt: list[int], texts: Sequence[tuple[int, ...]]) -> float:
    """Of all texts of three tokens, against the probabilities that the model gives them."""
    size = module.config.vocab_size
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    ids = torch.cat([torch.tensor(prompt).expand(size * size, -1), pairs], dim=1)
    with torch.no_grad():
        own = module(ids)[:, len(prompt) - 1 :].softmax(-1)  # (36, 3, 6)
    rows = torch.arange(size * size)
    expected = own[rows, 0, pairs[:, 0], None] * own[rows, 1, pairs[:, 1], None] * own[:, 2] * len(texts)
    places = torch.tensor(texts) @ torch.tensor([size * size, size, 1])
    found = torch.bincount(places, minlength=size**3)
    return float(((found - expected.flatten()) ** 2 / expected.flatten()).sum())
