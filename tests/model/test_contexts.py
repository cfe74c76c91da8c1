"""Causal, packed and cached passes are one model: the same tokens give the same numbers, however they are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import TINY, make
from torch import Tensor

from gpt2.distributed.parallelize import parallelize
from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.kv_cache import KVCache
from gpt2.model.masks import Causal, Packed

CLOSE = {"rtol": 0, "atol": 2e-5}
BANDED = {"attention_pattern": ("dense", "banded"), "band_width": 5}
STRIDED = {"attention_pattern": ("banded", "strided"), "band_width": 4, "attention_stride": 4}
VARIANTS = {
    "plain": {},
    "wide": {"head_dim": 24},
    "by_layer": {"scale_by_layer": True, "bias": False},
    "banded": BANDED,
    "strided": STRIDED,
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def module(request: pytest.FixtureRequest) -> GPT:
    return make(scale=5.0, **request.param)


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    """torch.empty gives NaN, so that nothing unwritten can pass for a zero."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, TINY.vocab_size, (batch, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize("steps", [[1] * 20, [7, 13], [5, 1, 1, 9, 4], [20]], ids=str)
def test_reading_in_steps_equals_one_pass(module: GPT, steps: list[int]) -> None:
    tokens = ids(3, 20)
    cache = KVCache(module.config, batch=3)
    parts = [module(part, context=cache) for part in tokens.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), module(tokens), **CLOSE)
    assert cache.lengths == [20, 20, 20]


@torch.no_grad()
def test_a_ragged_batch_of_8_equals_the_8_alone(module: GPT, empty_memory_is_nan: None) -> None:
    lengths = [1, 30, 7, 7, 12, 25, 2, 18]
    tokens, more = ids(8, 30), ids(8, 6)
    cache = KVCache(module.config, batch=8)
    prompts = module(tokens, context=cache)
    cache.truncate(lengths)
    steps = torch.cat([module(step, context=cache) for step in more.split([1, 1, 3, 1], dim=1)], dim=1)
    for row, length in enumerate(lengths):
        alone = module(torch.cat([tokens[row, :length], more[row]])[None])[0]
        torch.testing.assert_close(torch.cat([prompts[row, :length], steps[row]]), alone, **CLOSE)


@torch.no_grad()
def test_truncated_tokens_are_forgotten_and_selected_rows_go_on(module: GPT) -> None:
    tokens, other = ids(2, 10), ids(2, 10).flip(1)
    cache = KVCache(module.config, batch=2, capacity=14)
    module(tokens, context=cache)
    cache.truncate([4, 4])
    module(other[:, :2], context=cache)
    cache.select([1, 0, 1])
    seen = module(torch.tensor([[5, 6], [7, 8], [9, 10]]), context=cache)
    for place, row in enumerate([1, 0, 1]):
        new = torch.tensor([[5, 6], [7, 8], [9, 10]])[place]
        alone = module(torch.cat([tokens[row, :4], other[row, :2], new])[None])[0, -2:]
        torch.testing.assert_close(seen[place], alone, **CLOSE)


@torch.no_grad()
def test_pasted_rows_take_the_place_of_others(module: GPT) -> None:
    tokens, config = ids(3, 12), module.config
    cache, fresh = KVCache(config, batch=3), KVCache(config, batch=1, capacity=5)
    module(tokens, context=cache)
    module(tokens[:1, 3:8], context=fresh)
    cache.paste([1], fresh)
    assert cache.lengths == [12, 5, 12]
    seen = module(torch.tensor([[1], [2], [3]]), context=cache)
    alone = module(torch.cat([tokens[0, 3:8], torch.tensor([2])])[None])
    torch.testing.assert_close(seen[1, -1], alone[0, -1], **CLOSE)


def test_a_cache_only_shortens_and_says_what_does_not_fit() -> None:
    module, cache = make(), KVCache(TINY, batch=1, capacity=8)
    module(ids(1, 8), context=cache)
    with pytest.raises(UserError, match="9 tokens do not fit a cache made for 8"):
        module(ids(1, 1), context=cache)
    cache.truncate([3])
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate([4])
    with pytest.raises(ValueError, match="holds 1 rows"):
        module(ids(2, 1), context=cache)


@pytest.mark.parametrize("cached", [False, True])
def test_past_the_context_is_an_error_that_names_it(cached: bool) -> None:
    context = KVCache(TINY) if cached else None
    with pytest.raises(UserError, match="65 tokens do not fit the model's context of 64"):
        make()(ids(1, 65), context=context)


def test_packed_texts_equal_separate_texts_in_logits_and_gradients(module: GPT) -> None:
    lengths = [[5, 1, 14], [9, 11]]
    tokens, targets = ids(2, 20), ids(2, 20).roll(1, 0)
    segments = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in lengths])
    packed = module(tokens, context=Packed(segments))
    module(tokens, targets, context=Packed(segments))[0].backward()
    together = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    for row, sizes in enumerate(lengths):
        pieces = zip(tokens[row].split(sizes), targets[row].split(sizes), packed[row].split(sizes), strict=True)
        for text, target, seen in pieces:
            torch.testing.assert_close(seen, module(text[None])[0], **CLOSE)
            module(text[None], target[None])[0].backward()
    for name, parameter in module.named_parameters():
        distance = (parameter.grad - together[name]).norm() / (parameter.grad.norm() + 1e-12)
        assert distance < 1e-4, name


@pytest.mark.parametrize("level", ["selective", "full"])
def test_recomputed_blocks_see_what_they_saw(module: GPT, level: Any) -> None:
    tokens, segments = ids(2, 20), torch.tensor([[0] * 5 + [1] * 15, [0] * 9 + [1] * 11])
    for context in (None, segments):
        gradients = []
        for twin in (module, parallelize(copy.deepcopy(module), None, recompute=level)):
            twin.zero_grad()
            twin(tokens, tokens.roll(1, 0), None if context is None else Packed(context))[0].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]))
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_packed_rows_longer_than_the_context_hold_texts_that_fit() -> None:
    module, tokens = make(), ids(1, 100)
    segments = torch.tensor([[0] * 50 + [1] * 50])
    assert module(tokens, context=Packed(segments)).shape == (1, 100, TINY.vocab_size)
    with pytest.raises(UserError, match="70 tokens do not fit"):
        module(tokens, context=Packed(torch.tensor([[0] * 70 + [1] * 30])))
    with pytest.raises(ValueError, match="segment_ids"):
        module(tokens, context=Packed(segments[:, :50]))


def seen_by(module: GPT, length: int) -> Tensor:
    """Which tokens each of the last hidden states depends on (T, T), by gradient: seeing once, through one layer."""
    tokens = ids(1, length)
    seen = torch.zeros(length, length, dtype=torch.bool)
    for place in range(length):
        embedded = module.wte(tokens).detach().requires_grad_()
        context = Causal()
        context.begin(tokens, module.config)
        module.h[0](embedded, context)[0, place].sum().backward()
        assert embedded.grad is not None
        seen[place] = embedded.grad[0].abs().sum(-1) > 0
    return seen


@pytest.mark.parametrize(
    ("changes", "back"),
    [
        ({"attention_pattern": ("dense",)}, range(12)),
        ({"attention_pattern": ("banded",), "band_width": 5}, range(5)),
        ({"attention_pattern": ("banded",), "band_width": 1}, range(1)),
        ({"attention_pattern": ("banded",), "band_width": 40}, range(12)),
        ({"attention_pattern": ("strided",), "attention_stride": 5}, range(0, 12, 5)),
        ({"attention_pattern": ("strided",), "attention_stride": 1}, range(12)),
    ],
    ids=str,
)
def test_a_token_sees_what_its_layers_kind_says(changes: dict[str, Any], back: range) -> None:
    wanted = torch.tensor([[i - j in back for j in range(12)] for i in range(12)])
    assert torch.equal(seen_by(make(scale=5.0, n_layer=1, **changes), 12), wanted)


def test_layers_take_turns() -> None:
    config = replace(TINY, n_layer=5, **STRIDED)
    assert [config.attention_kind(layer) for layer in range(5)] == ["banded", "strided"] * 2 + ["banded"]
    assert [config.window(layer) for layer in range(5)] == [4, 0, 4, 0, 4]
    assert [config.stride(layer) for layer in range(5)] == [1, 4, 1, 4, 1]
