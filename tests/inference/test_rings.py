"""Banded layers keep a ring of pages in both runners: the plain loop's tokens, and no more memory for a longer text."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_runner import FakeRunner
from fake_runner import plain as fake_plain
from tiny_models import BYTES, make, state_of, write_model

from gpt2.checkpoint.packed import pack_state
from gpt2.errors import UserError
from gpt2.inference.beam import BeamParams, beam_search
from gpt2.inference.engine import Engine
from gpt2.inference.generate import generate
from gpt2.inference.pages import pages_for
from gpt2.inference.request import PAGE_SIZE, Request, Span
from gpt2.inference.rings import rings_for
from gpt2.inference.rows import Result
from gpt2.inference.runners import graphs
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.score import losses
from gpt2.inference.speculate import PromptLookup, SmallerModel
from gpt2.model.gpt import GPT

cpu = pytest.importorskip("gpt2.inference.runners.cpu")
CONTEXT = 144
PATTERNS = [("dense", "banded"), ("banded",), ("banded", "strided")]
CASES = list(itertools.product(PATTERNS, (1, 5, 16, 40)))
GREEDY = SamplingParams(max_new_tokens=50, temperature=0, ignore_eot=True)
TOKENS = torch.randint(0, 257, (CONTEXT,), generator=torch.Generator().manual_seed(3)).tolist()


def model(pattern: tuple[str, ...], band: int, **changes: Any) -> GPT:
    """Three layers, so that one kind comes twice; a stride that no page is a multiple of."""
    stride = 7 if "strided" in pattern else 0
    usual = {"scale": 15.0, "n_layer": 3, "context_length": CONTEXT}
    return make(attention_pattern=pattern, band_width=band, attention_stride=stride, **(usual | changes))


def prompts() -> list[list[int]]:
    """Longer than the band and shorter, two with one beginning, one that slides past the context."""
    pick = random.Random(7)
    texts = [pick.choices(b"abcdefgh \n", k=count) for count in (1, 30, 100, 47)]
    return [*texts, texts[2][:90] + texts[1]]


@pytest.fixture(scope="module")
def runner_of() -> Iterator[Any]:
    """Make runners of either kind, whose threads end with the module."""
    made: list[Any] = []

    def make_runner(kind: str, module: GPT, pages: int = 120, weights: str = "float32", **settings: Any) -> Any:
        if kind == "torch":
            return TorchRunner(module, pages, **{"max_tokens": 256, "max_outputs": CONTEXT, **settings})
        state = {name: tensor.float().numpy() for name, tensor in state_of(module).items()}
        rows = module.config.vocab_size
        state = {name: t[:rows] if name[:3] in ("wte", "lm_") else t for name, t in state.items()}
        made.append(
            cpu.CpuRunner(pack_state(module.config, state, weights), pages, **{"max_outputs": CONTEXT, **settings})
        )
        return made[-1]

    yield make_runner
    for runner in made:
        runner.close()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{'-'.join(case[0])} {case[1]}")
def written(request: pytest.FixtureRequest) -> tuple[GPT, list[Result]]:
    """A model and what the plain loop writes with it."""
    module = model(*request.param)
    return module, generate(module, BYTES, prompts(), GREEDY)


WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunked": {"max_tokens": 9, "max_span": 5},
    "preempted": {"pages": 14},
    "lookup": {"max_span": 17},
}


@pytest.mark.parametrize("kind", ["torch", "cpu"])
@pytest.mark.parametrize("way", WAYS)
def test_both_runners_write_the_plain_loops_tokens(
    written: tuple[GPT, list[Result]], runner_of: Any, way: str, kind: str
) -> None:
    module, expected = written
    engine = Engine((runner_of(kind, module, **WAYS[way]), BYTES), 4, PromptLookup() if way == "lookup" else None)
    results = engine.generate(prompts(), GREEDY)
    assert [result.tokens for result in results] == [result.tokens for result in expected]
    assert engine.stats.shared == 0  # a ring holds the end of a text only: no prefix is shared
    assert (engine.stats.preemptions > 0) == (way == "preempted")
    assert (engine.stats.accepted > 0) == (way == "lookup")
    for pool in (engine.scheduler.pages, engine.scheduler.rings):
        assert pool.free == pool.count


@pytest.mark.parametrize("kind", ["torch", "cpu"])
@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
def test_a_text_alone_and_the_samples_of_one_prompt_are_the_plain_loops(
    runner_of: Any, kind: str, pattern: tuple[str, ...]
) -> None:
    module = model(pattern, 16)
    engine = Engine((runner_of(kind, module), BYTES), 4)
    params = SamplingParams(max_new_tokens=40, n=3, seed=2, top_k=0, ignore_eot=True)
    for prompt in prompts()[1:3]:
        found, expected = engine.generate([prompt], params), generate(module, BYTES, [prompt], params)
        assert [result.tokens for result in found] == [result.tokens for result in expected]
    read_once = sum(map(len, prompts()[1:3]))
    assert engine.stats.read == read_once + 2 * 3 * 39  # each prompt once: its samples have copies of the ring


@pytest.mark.parametrize("kind", ["torch", "cpu"])
def test_guesses_of_a_smaller_banded_model_change_nothing(runner_of: Any, kind: str) -> None:
    module = model(("dense", "banded"), 16)
    expected = generate(module, BYTES, prompts(), GREEDY)
    drafter = SmallerModel(runner_of(kind, module, max_tokens=20), price=0.0)
    engine = Engine((runner_of(kind, module), BYTES), 4, drafter)
    assert [result.tokens for result in engine.generate(prompts(), GREEDY)] == [result.tokens for result in expected]
    assert engine.stats.acceptance == 1 and engine.stats.accepted > 100
    assert drafter.room.rings.free == drafter.room.rings.count


@torch.no_grad()
def plain_beams(module: GPT, prompt: Sequence[int], width: int, count: int) -> list[list[int]]:
    """The likeliest texts, best first, each read anew for each token."""
    texts, totals = [list(prompt)], torch.zeros(1)
    for _ in range(count):
        after = module(torch.tensor(texts))[:, -1].log_softmax(-1) + totals[:, None]  # (beams, V)
        totals, places = after.flatten().topk(width)
        texts = [[*texts[place // after.size(1)], place % after.size(1)] for place in places.tolist()]
    return [text[len(prompt) :] for text in texts]


@pytest.mark.parametrize("kind", ["torch", "cpu"])
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids="-".join)
def test_beams_take_copies_of_the_ring_where_they_part(runner_of: Any, kind: str, pattern: tuple[str, ...]) -> None:
    module = model(pattern, 16)
    params = SamplingParams(max_new_tokens=40, n=4, ignore_eot=True)
    runner = runner_of(kind, module, max_span=17)
    results = beam_search(runner, BYTES, prompts()[1:3], params, BeamParams(4))
    expected = [text for prompt in prompts()[1:3] for text in plain_beams(module, prompt, 4, 40)]
    assert [result.tokens for result in results] == expected
    with pytest.raises(UserError, match=r"40 beams .* need \d+ pages, 80 of rings, .* there are 120, 27"):
        beam_search(runner, BYTES, prompts()[:1], SamplingParams(), BeamParams(40))


# ---- the memory ----


class Watched(TorchRunner):
    """Remembers the most pages that a span came with."""

    most = (0, 0)

    def step(self, spans: Sequence[Span]) -> None:
        held = [self.most, *((len(span.pages), len(span.ring)) for span in spans)]
        self.most = max(pages for pages, _ in held), max(ring for _, ring in held)
        super().step(spans)


@pytest.mark.parametrize(("band", "chunk"), [(40, 64), (128, 128), (256, 256), (1, 64)])
def test_a_banded_layers_bytes_are_those_of_band_and_chunk_at_512_tokens_and_at_2048(band: int, chunk: int) -> None:
    held = []
    for length in (512, 2048):
        module = model(("dense", "banded"), band, n_layer=2, n_embd=8, n_head=1, context_length=length)
        runner = Watched(module, pages_for(length))
        prompt = (TOKENS * 20)[: length - 50]
        Engine((runner, BYTES), 1).generate([prompt], GREEDY)
        assert runner.rings.max_span == chunk
        assert runner.most == (pages_for(length), runner.rings.each)
        part = runner.pool.rings
        held.append(part.keys.nbytes + part.values.nbytes)
        assert part.keys.shape[:2] == (1, (runner.rings.each + 1) * PAGE_SIZE)  # and the page that nobody looks at
    assert held[0] == held[1]
    assert runner.rings.each == pages_for(band + chunk - 1) <= pages_for(band + chunk)


def test_the_processors_pool_has_the_same_rings(runner_of: Any) -> None:
    sizes = []
    for length in (512, 2048):
        module = model(("dense", "banded", "banded"), 40, n_embd=16, n_head=1, context_length=length)
        runner = runner_of("cpu", module, pages=pages_for(length))
        full, rings = runner._parts(runner._pool)
        assert full.nbytes == length * 2 * 16 * 4
        sizes.append(rings.nbytes)
    assert sizes == [2 * pages_for(40 + 64 - 1) * PAGE_SIZE * 2 * 16 * 4] * 2


def test_a_short_context_needs_no_ring_longer_than_itself() -> None:
    config = model(("banded",), 40, context_length=50).config
    rings = rings_for(config, 8, max_tokens=512)
    assert (rings.each, rings.count, rings.max_span) == (4, 8, 50)


def test_pools_are_of_one_measure_and_a_dense_model_has_no_rings() -> None:
    config = model(("dense", "banded"), 16, context_length=1024).config
    assert rings_for(config, 16 * 64, 512).count == 16 * rings_for(config, 64, 512).each == 16 * 5
    assert rings_for(make().config, 64, 512) == rings_for(model(("strided",), 0).config, 64, 512)
    assert rings_for(make().config, 64, 512).each == 0


# ---- prefixes ----


def test_a_prompt_that_comes_again_is_read_again_where_layers_are_banded() -> None:
    for band, again in ((0, [2]), (5, [34])):
        runner = FakeRunner(40, band=band)
        engine = Engine((runner, BYTES))
        params = SamplingParams(max_new_tokens=1, temperature=0, ignore_eot=True)
        engine.generate([[97] * 33], params)
        engine.generate([[97] * 33 + [98]], params)
        assert [len(span.tokens) for span in runner.steps[-1]] == again
        assert engine.stats.shared == (0 if band else 32)


def test_forks_that_slide_at_once_leave_no_copy_behind() -> None:
    """Their pages may be taken by the next fork: FakeRunner refuses two copies to one page."""
    params = SamplingParams(max_new_tokens=20, n=5, seed=1, ignore_eot=True)
    for band in (0, 5):
        runner = FakeRunner(40, context_length=30, band=band)
        texts = [[97] * 30, [98] * 30, [99] * 29]
        expected = [r for place, text in enumerate(texts) for r in fake_plain(runner.config, text, params, place=place)]
        assert Engine((runner, BYTES)).generate(texts, params) == expected


# ---- the runners by themselves ----


def read(runner: Any, tokens: Sequence[int], start: int, pages: Sequence[int], ring: Sequence[int]) -> np.ndarray:
    """The logits (T, V) of so many tokens from `start` on."""
    runner.step([Span(tokens, start, pages, len(tokens), ring=ring)])
    return np.asarray(runner.logits).copy()


@torch.no_grad()
def whole(module: GPT, tokens: Sequence[int]) -> np.ndarray:
    logits: np.ndarray = module(torch.tensor([tokens]))[0].numpy()
    return logits


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("pattern", [*PATTERNS, ("strided",)], ids="-".join)
def test_no_cut_ring_or_thread_changes_a_bit_on_the_processor(
    runner_of: Any, pattern: tuple[str, ...], kv: str
) -> None:
    band = 21 if "banded" in pattern else 0
    module = model(pattern, band, scale=3.0, head_dim=40)
    one = runner_of("cpu", module, kv=kv, threads=1, max_span=CONTEXT)
    expected = read(one, TOKENS, 0, range(9), range(one.rings.each))
    many, pick, parts = runner_of("cpu", module, kv=kv, threads=3, max_span=23), random.Random(2), []
    ring = pick.sample(range(many.rings.count), many.rings.each)
    place = 0
    while place < CONTEXT:
        count = min(pick.choice([1, 1, 2, 9, 23]), CONTEXT - place)
        parts.append(read(many, TOKENS[place : place + count], place, range(50, 59), ring))
        place += count
    assert np.array_equal(np.concatenate(parts), expected)
    wanted = whole(module, TOKENS)
    assert np.abs(expected - wanted).max() / np.abs(wanted).max() < (1e-5 if kv == "float32" else 0.01)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_packed_weights_go_with_rings(runner_of: Any, weights: str) -> None:
    module = model(("dense", "banded"), 21, scale=3.0)
    runner = runner_of("cpu", module, weights=weights, max_span=CONTEXT)
    wanted = whole(module, TOKENS)
    found = read(runner, TOKENS, 0, range(9), range(runner.rings.each))
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < (0.15 if weights == "int4" else 0.03)


@pytest.mark.parametrize("kind", ["torch", "cpu"])
@pytest.mark.parametrize("right", [0, 1, 6, 16])
def test_drafts_taken_back_have_overwritten_nothing_that_is_looked_at(runner_of: Any, kind: str, right: int) -> None:
    module = model(("dense", "banded"), 40, scale=3.0)
    runner = runner_of(kind, module, max_span=17)
    pages, ring, wanted = range(9), range(runner.rings.each), whole(module, TOKENS)
    for start in range(0, 102, 17):
        read(runner, TOKENS[start : start + 17], start, pages, ring)
    read(runner, [*TOKENS[102 : 102 + right], *TOKENS[: 17 - right]], 102, pages, ring)
    found = read(runner, TOKENS[102 + right : 118], 102 + right, pages, ring) if right < 16 else wanted[118:118]
    np.testing.assert_allclose(found, wanted[102 + right : 118], atol=1e-4)


def test_what_others_left_on_a_ring_is_not_looked_at(runner_of: Any) -> None:
    """Not even if it is no number; and graphs' steps of fixed shape look no further."""
    module = model(("banded", "strided"), 40, scale=3.0)
    runner = runner_of("torch", module)
    for memory in (runner.pool.full, runner.pool.rings):
        memory.keys.fill_(float("nan"))
        memory.values.fill_(float("nan"))
    texts, wanted = [TOKENS[:23], TOKENS[:5]], whole(module, TOKENS)
    places = [([3, 7], [5, 8]), ([4], [6])]
    last = [Span(t[-1:], len(t) - 1, pages, ring=ring) for t, (pages, ring) in zip(texts, places, strict=True)]
    runner.step([Span(t[:-1], 0, pages, ring=ring) for t, (pages, ring) in zip(texts, places, strict=True)])
    runner.step(last)
    expected = wanted[[22, 4]]
    np.testing.assert_allclose(runner.logits, expected, atol=1e-4)
    decode = graphs.Decode(module, runner.pool, 4, CONTEXT)
    runner.pool.full.keys[:, -PAGE_SIZE:] = runner.pool.full.values[:, -PAGE_SIZE:] = 0  # scratch pages
    runner.pool.rings.keys[:, -PAGE_SIZE:] = runner.pool.rings.values[:, -PAGE_SIZE:] = 0
    with torch.inference_mode():
        decode.fill(last)
        np.testing.assert_allclose(module.head(decode.run()[:2]), expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_of_fixed_shape_write_the_plain_loops_tokens(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA records, run eagerly."""
    monkeypatch.setattr(graphs, "record", lambda decode: decode.run)
    module = model(*case)
    runner = TorchRunner(module, 60)
    runner._graphs = graphs.Graphs(module, runner.pool)
    results = Engine((runner, BYTES), 4).generate(prompts()[:4], GREEDY)
    assert [r.tokens for r in results] == [r.tokens for r in generate(module, BYTES, prompts()[:4], GREEDY)]
    assert runner._graphs._recorded


@pytest.mark.parametrize("kind", ["torch", "cpu"])
def test_losses_of_a_text_are_the_modules_own(runner_of: Any, kind: str) -> None:
    module = model(("dense", "banded"), 16, scale=3.0)
    (found,) = losses(runner_of(kind, module, pages=9), [TOKENS])
    logits = torch.from_numpy(whole(module, TOKENS[:-1]))
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(TOKENS[1:]), reduction="none").tolist()
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", ["torch", "cpu"])
def test_rings_that_do_not_do_are_refused(runner_of: Any, kind: str) -> None:
    runner = runner_of(kind, model(("banded",), 5), max_span=8)
    assert runner.rings.each == 1
    for tokens, ring in ((9, [0]), (8, []), (8, [0, 1]), (8, [runner.rings.count]), (8, [-1])):
        with pytest.raises(ValueError):
            runner.step([Span([1] * tokens, 0, [0], ring=ring)])
    with pytest.raises(ValueError):
        runner_of(kind, make()).step([Span([1], 0, [0], ring=[0])])


def test_a_packed_folder_of_a_banded_model_writes_by_default(tmp_path: Path) -> None:
    from gpt2 import load
    from gpt2.checkpoint.packed import pack_folder, read_packed, write_packed

    module = model(("dense", "banded"), 5)
    folder = write_model(tmp_path / "float", module)
    packed = pack_folder(folder, module.config, "int8")
    write_packed(tmp_path / "packed", packed, BYTES)
    assert read_packed(tmp_path / "packed").config == module.config
    texts = [load(path).generate("abc", max_new_tokens=40, temperature=0) for path in (folder, tmp_path / "packed")]
    assert texts[0] == texts[1] and texts[0]


def test_a_request_lets_go_of_its_ring() -> None:
    request = Request([1, 2], 8, [], pages=[1], ring=[2])
    request.forget()
    assert (request.pages, request.ring) == ([], [])
