"""Several adapters over one base in one batch: each text gets the tokens it gets alone with its adapter merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BYTES, ODD, make

from gpt2.checkpoint.adapters import Adapter, merge_into
from gpt2.errors import UserError
from gpt2.inference.engine import Engine
from gpt2.inference.generate import generate
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.base import Runner
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.speculate import PromptLookup
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.lora_config import LoRAConfig, tensor_shapes

GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eot=True)
SHAPES = [
    LoRAConfig(rank=4, alpha=8),
    LoRAConfig(rank=3, alpha=9, target_modules=("c_attn", "mlp.c_proj")),
    LoRAConfig(rank=20, target_modules=("c_fc", "h.1.attn.c_proj"), rslora=True),
]
SHARED = "The same beginning of more than one page of text, "  # pages are 16 tokens, and a byte is one
PROMPTS = [SHARED + end for end in ("a", "bc", "d")] + ["x", SHARED + "a"]
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "odd": {"n_embd": 40, "n_inner": 72, "n_head": 5, "vocab_size": 259},
    "own width": {"n_head": 3, "head_dim": 12},
    "banded": {"attention_pattern": ("dense", "banded"), "band_width": 20},
    **ODD,
}


def adapters_for(config: GPTConfig, std: float = 0.3) -> list[Adapter]:
    made, random = [], np.random.default_rng(5)
    for shape in SHAPES:
        sizes = tensor_shapes(shape, config, shape.targets(config))
        state = {name: random.normal(0, std, size).astype(np.float32) for name, size in sizes.items()}
        made.append(Adapter(shape, state, "base"))
    return made


def merged(module: GPT, adapter: Adapter | None) -> GPT:
    copy = GPT(module.config).eval()
    copy.load_state_dict(module.state_dict())
    if adapter:
        merge_into(copy, adapter)
    return copy


def torch_runner(module: GPT, adapters: list[Adapter], pages: int = 128, **settings: Any) -> Runner:
    from gpt2.inference.runners.torch import TorchRunner

    return TorchRunner(module, pages, adapters=adapters, vocab_size=257, **settings)


def cpu_runner(
    module: GPT, adapters: list[Adapter], weights: str = "float32", pages: int = 128, **settings: Any
) -> Runner:
    pytest.importorskip("numba")
    from gpt2.inference.runners.cpu import CpuRunner

    return CpuRunner(packed(module, weights), pages, adapters=adapters, vocab_size=257, **settings)


def packed(module: GPT, weights: str) -> Any:
    from gpt2.checkpoint.packed import pack_state

    size = module.config.vocab_size
    state = {name: tensor.detach().numpy() for name, tensor in module.named_parameters()}
    for name in ("wte.weight", "lm_head.weight", "lm_head.bias"):
        if name in state:
            state[name] = state[name][:size]
    return pack_state(module.config, state, weights)


RUNNERS: dict[str, Callable[..., Runner]] = {"torch": torch_runner, "cpu": cpu_runner}
both = pytest.mark.parametrize("make_runner", RUNNERS.values(), ids=RUNNERS)


def alone(module: GPT, adapter: Adapter | None, prompt: str, params: SamplingParams = GREEDY) -> list[int]:
    (result,) = generate(merged(module, adapter), BYTES, [prompt], params)
    return result.tokens


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_text_of_a_batch_has_the_tokens_it_has_alone_with_its_adapter_merged(
    make_runner: Callable[..., Runner], variant: str
) -> None:
    module = make(scale=3.0, **VARIANTS[variant])
    adapters = adapters_for(module.config)
    engine = Engine((make_runner(module, adapters), BYTES))
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    numbers = [number for _ in PROMPTS for number in range(4)]
    results = engine.generate(prompts, GREEDY, adapter=numbers)
    wanted = [alone(module, adapters[n - 1] if n else None, p) for p, n in zip(prompts, numbers, strict=True)]
    assert [result.tokens for result in results] == wanted
    assert len({tuple(tokens) for tokens in wanted[:4]}) == 4  # each adapter says something else


@both
def test_a_step_gives_the_logits_of_the_merged_model(make_runner: Callable[..., Runner]) -> None:
    module = make(scale=3.0)
    adapters = adapters_for(module.config)
    runner = make_runner(module, adapters)
    tokens = list(b"some words, and more of them than a page has")
    spans = [Span(tokens, 0, range(4 * n, 4 * n + 4), outputs=3, adapter=n) for n in (2, 0, 1, 3)]
    runner.step(spans)
    for place, span in enumerate(spans):
        plain = merged(module, adapters[span.adapter - 1] if span.adapter else None)
        with torch.no_grad():
            logits = plain(torch.tensor([tokens]))[0, -3:]
        got = torch.as_tensor(runner.logits[3 * place : 3 * place + 3])  # type: ignore[attr-defined]
        torch.testing.assert_close(got, logits, rtol=0, atol=1e-4)


@both
def test_prefixes_are_shared_within_an_adapter_and_never_across(make_runner: Callable[..., Runner]) -> None:
    module = make(scale=3.0)
    adapters = adapters_for(module.config)
    engine = Engine((make_runner(module, adapters), BYTES))
    pages = len(SHARED) // PAGE_SIZE
    for number in (0, 1, 2):
        before = engine.stats.shared
        (first,) = engine.generate([PROMPTS[0]], GREEDY, adapter=number)
        assert engine.stats.shared == before  # though others have read the same tokens
        assert first.tokens == alone(module, adapters[number - 1] if number else None, PROMPTS[0])
    for number in (2, 0, 1):
        before = engine.stats.shared
        engine.generate([PROMPTS[1]], GREEDY, adapter=number)
        assert engine.stats.shared - before == pages * PAGE_SIZE


@both
def test_samples_drafts_slides_and_short_of_pages_change_nothing(make_runner: Callable[..., Runner]) -> None:
    module = make(scale=3.0)
    adapters = adapters_for(module.config)
    params = SamplingParams(max_new_tokens=40, temperature=0, ignore_eot=True, n=2)  # past the context of 64
    numbers = [1, 2, 3, 1, 0]
    wanted = Engine((make_runner(module, adapters), BYTES)).generate(PROMPTS, params, adapter=numbers)
    for drafter in (None, PromptLookup()):
        runner = make_runner(module, adapters, max_tokens=48, pages=10)
        again = Engine((runner, BYTES), drafter=drafter).generate(PROMPTS, params, adapter=numbers)
        assert [result.tokens for result in again] == [result.tokens for result in wanted]
    for place, number in enumerate(numbers):
        adapter = adapters[number - 1] if number else None
        expected = alone(
            module, adapter, PROMPTS[place], SamplingParams(max_new_tokens=40, temperature=0, ignore_eot=True)
        )
        assert wanted[2 * place].tokens == wanted[2 * place + 1].tokens == expected


@both
def test_an_unknown_adapter_is_refused_and_harms_nobody(make_runner: Callable[..., Runner]) -> None:
    module = make(scale=3.0)
    adapters = adapters_for(module.config)
    engine = Engine((make_runner(module, adapters), BYTES))
    with pytest.raises(UserError, match="adapter 4: the model was loaded with 3"):
        engine.generate(["a"], GREEDY, adapter=4)
    with pytest.raises(UserError, match="adapter 1: the model was loaded with 0"):
        Engine((make_runner(module, []), BYTES)).generate(["a"], GREEDY, adapter=1)
    with pytest.raises(UserError, match="adapter -1: the runner has 3"):
        engine.runner.step([Span([1], 0, [0], adapter=-1)])
    with pytest.raises(ValueError, match="2 prompts, but adapters for 1"):
        engine.generate(["a", "b"], GREEDY, adapter=[1])
    assert engine.generate(["a"], GREEDY, adapter=3)[0].tokens == alone(module, adapters[2], "a")


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_over_packed_weights_an_adapter_adds_what_it_adds_to_the_model_itself(weights: str) -> None:
    """Channels are evened out before quantisation: the low rank must take them as they then are."""
    module = make(n_embd=128, noise=0.5, scale=3.0)
    adapters = adapters_for(module.config, std=0.1)
    tokens = list(b"some words, and more of them")

    def logits(runner: Any, adapter: int) -> np.ndarray:
        runner.step([Span(tokens, 0, [0, 1], outputs=len(tokens), adapter=adapter)])
        return np.array(runner.logits)

    exact, short = cpu_runner(module, adapters), cpu_runner(module, adapters, weights, kv="float32")
    base = np.abs(logits(short, 0) - logits(exact, 0)).max()
    for number in (1, 2, 3):
        moved = np.abs(logits(exact, number) - logits(exact, 0)).max()
        error = np.abs(logits(short, number) - logits(exact, number)).max()
        assert error < max(0.2 * moved, 3 * base) and moved > 3 * base


def test_bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch() -> None:
    module = make(n_embd=128, scale=3.0)
    adapters = adapters_for(module.config)
    tokens = list(b"some words, and more of them")
    spans = [Span(tokens, 0, [2 * n, 2 * n + 1], adapter=n) for n in range(4)]
    seen = []
    for threads in (1, 3):
        runner: Any = cpu_runner(module, adapters, threads=threads)
        runner.step(spans)
        together = np.array(runner.logits)
        for n, span in enumerate(spans):
            runner.step([span])
            assert np.array_equal(runner.logits[0], together[n])
        seen.append(together)
    assert np.array_equal(seen[0], seen[1])
