"""The processor's runner against the torch model: its numbers, that no batch changes them, and what it refuses."""

from __future__ import annotations

import gc
import itertools
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BYTES, ODD, TINY, make, state_of

pytest.importorskip("numba")
from gpt2.checkpoint.packed import PackedModel, pack_state
from gpt2.errors import UserError
from gpt2.inference.engine import Engine
from gpt2.inference.generate import generate
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.cpu import KV_DTYPES, CpuRunner, thread_count
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.speculate import PromptLookup
from gpt2.kernels import plan as at
from gpt2.model.gpt import GPT

FORMATS = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.02, "int4": 0.1, "int4-head": 0.15}  # of the largest logit
VARIANTS: dict[str, dict[str, Any]] = {
    **ODD,
    "own width": {"n_head": 3, "head_dim": 12},
    "by layer": {"scale_by_layer": True, "n_layer": 3},
    "odd sizes": {"n_embd": 40, "n_inner": 72, "n_head": 5, "vocab_size": 259, "norm_eps": 1e-3},
}
WIDE = {"n_embd": 80, "head_dim": 40}  # heads of more than one vector, and not of whole ones
TOKENS = torch.randint(0, 257, (60,), generator=torch.Generator().manual_seed(3)).tolist()


def packed(module: GPT, weights: str) -> PackedModel:
    config = module.config
    state = {name: tensor.float().numpy() for name, tensor in state_of(module).items()}
    cropped = {
        name: array[: config.vocab_size] if name[:3] in ("wte", "lm_") else array for name, array in state.items()
    }
    if config.tie_head:
        cropped.pop("lm_head.weight", None)
    return pack_state(config, cropped, weights)


@pytest.fixture
def runner_of() -> Iterator[Any]:
    """Make runners whose threads end with the test."""
    made: list[CpuRunner] = []

    def make_runner(module: GPT, weights: str = "float32", pages: int = 64, **settings: Any) -> CpuRunner:
        made.append(CpuRunner(packed(module, weights), pages, **{"max_outputs": 64, **settings}))
        return made[-1]

    yield make_runner
    for runner in made:
        runner.close()


def logits(runner: CpuRunner, *spans: Span) -> np.ndarray:
    runner.step(spans)
    return runner.logits.copy()


def exact(module: GPT, tokens: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = module(torch.tensor([tokens]))[0, :, : module.config.vocab_size].numpy()
    return found


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("weights", FORMATS)
def test_logits_are_the_models_as_far_as_the_format_holds_it(runner_of: Any, weights: str, kv: str) -> None:
    module = make(scale=3.0, **WIDE)
    found = logits(runner_of(module, weights, kv=kv), Span(TOKENS, 0, range(4), 60))
    assert error(found, exact(module, TOKENS)) < FORMATS[weights] + (0 if kv == "float32" else 0.003)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_model_is_computed(runner_of: Any, variant: str) -> None:
    module = make(scale=3.0, **VARIANTS[variant])
    found = logits(runner_of(module), Span(TOKENS, 0, range(4), 60))
    assert error(found, exact(module, TOKENS)) < 1e-5


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("kv", KV_DTYPES)
def test_no_batch_chunk_page_or_thread_changes_a_bit(runner_of: Any, weights: str, kv: str) -> None:
    module = make(scale=3.0, **WIDE)
    runner = runner_of(module, weights, kv=kv, threads=2)
    whole = logits(runner, Span(TOKENS, 0, [0, 1, 2, 3], 60))
    assert np.array_equal(whole, logits(runner_of(module, weights, kv=kv, threads=1), Span(TOKENS, 0, range(4), 60)))
    assert np.array_equal(whole, logits(runner_of(module, weights, kv=kv, threads=3), Span(TOKENS, 0, range(4), 60)))
    mine, parts = [9, 7, 5, 30], []
    for start, stop in ((0, 13), (13, 14), (14, 30), *((place, place + 1) for place in range(30, 60))):
        others = [Span(TOKENS[start : start + count], 0, [40 + count], 1) for count in range(1, 1 + start % 5)]
        span = Span(TOKENS[start:stop], start, mine, stop - start)
        parts.append(logits(runner, *others, span)[len(others) :])
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("window", [0, 50])
def test_a_long_prompt_has_the_bits_of_its_parts(runner_of: Any, kv: str, window: int) -> None:
    """Longer than what a processor takes of a text at a time, and cut where no page ends."""
    banded = {"attention_pattern": ["banded", "dense"], "band_width": window} if window else {}
    module = make(scale=3.0, **WIDE, context_length=200, **banded)
    tokens = (TOKENS * 4)[:200]
    whole = logits(*text_on(runner_of(module, kv=kv, max_outputs=200, max_span=200), tokens, 0))
    assert error(whole, exact(module, tokens)) < 1e-5 + (0 if kv == "float32" else 0.01)
    runner, parts = runner_of(module, kv=kv), []  # whose rings are written on in turn
    for start, stop in itertools.pairwise((0, 3, 67, 68, 93, 95, 150, 200)):
        parts.append(logits(*text_on(runner, tokens[start:stop], start)))
    assert np.array_equal(whole, np.concatenate(parts))
    few = logits(*text_on(runner, tokens[150:], 150, outputs=7))
    assert np.array_equal(whole[-7:], few)


def text_on(runner: CpuRunner, tokens: Sequence[int], start: int, outputs: int = 0) -> tuple[CpuRunner, Span]:
    """The runner and a span of its one text; 0: all of its logits are wanted."""
    return runner, Span(tokens, start, range(13), outputs or len(tokens), ring=range(runner.rings.each))


def test_tokens_taken_back_leave_nothing_behind(runner_of: Any) -> None:
    module = make(scale=3.0)
    runner = runner_of(module, "int8")
    wanted = logits(runner, Span(TOKENS[:20], 0, [0, 1], 1))
    logits(runner, Span(TOKENS[:10], 0, [2, 3], 1))
    logits(runner, Span(TOKENS[40:49], 10, [2, 3], 9))  # drafts that were wrong
    assert np.array_equal(wanted, logits(runner, Span(TOKENS[10:20], 10, [2, 3], 1)))


@pytest.mark.parametrize("kv", KV_DTYPES)
def test_a_copied_page_goes_on_by_itself(runner_of: Any, kv: str) -> None:
    module = make(scale=3.0)
    runner = runner_of(module, kv=kv)
    logits(runner, Span(TOKENS[:20], 0, [0, 1], 0))
    runner.copy_pages([(1, 5)])
    logits(runner, Span(TOKENS[50:60], 20, [0, 1], 1))  # writes over what the copy does not see
    other = logits(runner, Span(TOKENS[20:30], 20, [0, 5], 1))
    assert np.array_equal(other, logits(runner, Span(TOKENS[:30], 0, [2, 3], 1)))


def test_a_step_without_outputs_only_remembers(runner_of: Any) -> None:
    runner = runner_of(make(scale=3.0))
    assert logits(runner, Span(TOKENS[:20], 0, [0, 1], 0)).shape == (0, 257)
    wanted = logits(runner, Span(TOKENS[:21], 0, [2, 3], 1))
    assert np.array_equal(wanted, logits(runner, Span(TOKENS[20:21], 20, [0, 1], 1)))


def test_log_probabilities_are_the_models(runner_of: Any) -> None:
    module = make(scale=3.0)
    runner = runner_of(module)
    runner.step([Span(TOKENS[:-1], 0, range(4), 59)])
    wanted = torch.from_numpy(exact(module, TOKENS[:-1])).log_softmax(-1)[range(59), TOKENS[1:]]
    assert runner.logprobs(TOKENS[1:]) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_tokens_that_the_tokenizer_lacks_are_never_chosen(runner_of: Any) -> None:
    runner = runner_of(make(scale=3.0), vocab_size=200)
    assert logits(runner, Span(TOKENS[:9], 0, [0], 1)).shape == (1, 200)


@pytest.mark.parametrize(
    "span",
    [
        Span([1], 0, [64], 1),
        Span([1], 0, [-1], 1),
        Span([257], 0, [0], 1),
        Span([1] * 17, 0, [0], 1),
        Span([1], 64, range(5), 1),
        Span([1], -1, [0], 1),
        Span([1], 0, [0], 2),
        Span([], 0, [0], 0),
        Span([1] * 64, 1, range(5), 0),
    ],
)
def test_spans_that_would_touch_foreign_memory_are_refused(runner_of: Any, span: Span) -> None:
    with pytest.raises(ValueError):
        runner_of(make()).step([span])


def test_what_the_runner_cannot_do_is_said(runner_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="adapter 2"):
        runner_of(make()).step([Span([1], 0, [0], 1, adapter=2)])
    with pytest.raises(UserError, match="choose float32, bfloat16, int8"):
        runner_of(make(), kv="int4")
    monkeypatch.setenv("GPT2_THREADS", "two")
    with pytest.raises(UserError, match="GPT2_THREADS=two"):
        thread_count()


def test_a_thread_that_does_not_answer_costs_one_step_and_no_more(runner_of: Any) -> None:
    module = make(scale=3.0)
    runner = runner_of(module, threads=2)
    wanted = logits(runner, Span(TOKENS[:20], 0, [0, 1], 1))
    team: Any = runner._team
    while not team._words[5 * at.LINE]:  # until the other one sleeps
        pass
    team._wake[1].release = lambda: None  # and hears nothing
    team._words[at.LINE] = 1  # as after ten seconds of waiting
    with pytest.raises(UserError, match="did not answer"):
        runner.step([Span(TOKENS[:20], 0, [0, 1], 1)])
    assert np.array_equal(wanted, logits(runner, Span(TOKENS[:20], 0, [0, 1], 1)))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs Unix's timers")
def test_ctrl_c_at_any_moment_leaves_a_runner_that_computes_the_same(runner_of: Any) -> None:
    runner, pick = runner_of(make(scale=3.0), "int8", threads=2), random.Random(5)
    wanted = logits(runner, Span(TOKENS, 0, range(4), 1))
    interrupted = 0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, pick.uniform(0.0002, 0.003))
                while True:
                    runner.step([Span(TOKENS[:7], 0, [5], 1)])
            except KeyboardInterrupt:
                interrupted += 1
            assert np.array_equal(wanted, logits(runner, Span(TOKENS, 0, range(4), 1)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 150


def test_the_threads_of_a_runner_that_nobody_holds_end(runner_of: Any) -> None:
    before = set(threading.enumerate())
    runner = CpuRunner(packed(make(), "int8"), pages=4, threads=3)
    logits(runner, Span(TOKENS[:20], 0, [0, 1], 1))
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    del runner
    gc.collect()
    for thread in mine:
        thread.join(5)
        assert not thread.is_alive()


def test_a_loaded_machine_gets_one_worker_for_a_while_and_the_same_bits(runner_of: Any) -> None:
    runner = runner_of(make(scale=3.0), threads=2)
    wanted = logits(runner, Span(TOKENS[:20], 0, [0, 1], 1))
    runner._team._alone = 1
    assert np.array_equal(wanted, logits(runner, Span(TOKENS[:20], 0, [0, 1], 1)))
    assert runner._plan[at.WORKERS] == 1
    assert np.array_equal(wanted, logits(runner, Span(TOKENS[:20], 0, [0, 1], 1)))
    assert runner._plan[at.WORKERS] == 2


def prompts(count: int = 64) -> list[list[int]]:
    """Mixed lengths, a third of them with one beginning."""
    pick = random.Random(7)
    begin = list(b"The sea was very still and the boats lay ")
    texts = [list(pick.choices(b"abcdefgh \n", k=pick.randint(1, 60))) for _ in range(count)]
    return [begin + text[:15] if place % 3 == 0 else text for place, text in enumerate(texts)]


@pytest.fixture(scope="module")
def plain() -> tuple[GPT, list[list[int]]]:
    """A model and what the plain loop writes with it."""
    module = make(scale=15.0)
    results = generate(module, BYTES, prompts(), SamplingParams(max_new_tokens=24, temperature=0, ignore_eot=True))
    return module, [result.tokens for result in results]


WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "batched": {},
    "chunked": {"max_tokens": 9},
    "preempted": {"pages": 9},
    "lookup": {},
}


@pytest.mark.parametrize("way", WAYS)
def test_64_prompts_get_the_tokens_of_the_plain_loop(
    runner_of: Any, plain: tuple[GPT, list[list[int]]], way: str
) -> None:
    module, wanted = plain
    runner = runner_of(module, **{"pages": 200, **WAYS[way]})
    engine = Engine((runner, BYTES), 1 if way == "alone" else 16, PromptLookup() if way == "lookup" else None)
    results = engine.generate(prompts(), SamplingParams(max_new_tokens=24, temperature=0, ignore_eot=True))
    assert [result.tokens for result in results] == wanted
    assert engine.stats.shared > 0
    assert (engine.stats.preemptions > 0) == (way == "preempted")
    assert (engine.stats.accepted > 0) == (way == "lookup")


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_a_text_is_the_same_alone_and_among_others_that_end_and_are_cancelled(runner_of: Any, weights: str) -> None:
    module, texts = make(scale=15.0), prompts(12)
    params = SamplingParams(max_new_tokens=20, seed=4, ignore_eot=True)
    alone = Engine((runner_of(module, weights, pages=200), BYTES), 1).generate(texts, params)
    engine = Engine((runner_of(module, weights, pages=40, max_tokens=50), BYTES), 8)
    jobs = [engine.add(text, params) for text in texts]
    for number in range(3, 12, 4):
        engine.step()
        engine.cancel(jobs[number])
    while engine.step():
        pass
    kept = [number for number in range(12) if number % 4 != 3]
    together = [piece.result for number in kept for piece in jobs[number].inbox if piece.result]
    assert [result.tokens for result in together] == [alone[number].tokens for number in kept]
    assert [result.logprobs for result in together] == [alone[number].logprobs for number in kept]


def test_the_context_ends_where_the_models_does(runner_of: Any) -> None:
    assert TINY.context_length % PAGE_SIZE == 0
    runner = runner_of(make(scale=3.0))
    assert logits(runner, Span([1] * TINY.context_length, 0, range(4), 1)).shape == (1, 257)
