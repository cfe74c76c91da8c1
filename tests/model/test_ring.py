"""The plain cache of banded layers: whatever is read, taken back, chosen and pasted, it sees what one pass sees."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make

from gpt2.model.gpt import GPT
from gpt2.model.kv_cache import KVCache

CONTEXT = 200
MODULES: dict[int, GPT] = {}


def module_of(band: int) -> GPT:
    if band not in MODULES:
        pattern = ("dense", "banded", "banded", "strided")
        changes = {"attention_pattern": pattern, "band_width": band, "attention_stride": 3}
        MODULES[band] = make(scale=3.0, n_layer=4, n_embd=16, context_length=CONTEXT, **changes)
    return MODULES[band]


def check_last(module: GPT, logits: torch.Tensor, texts: list[list[int]], new: int) -> None:
    for row, text in enumerate(texts):
        alone = module(torch.tensor([text]))[0, -new:]
        torch.testing.assert_close(logits[row], alone, rtol=0, atol=5e-5)


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 5, 16, 40]), st.integers(0, 2**30), st.sampled_from([0, 60]))
def test_any_passes_rollbacks_and_choices_of_rows_see_what_one_pass_sees(band: int, seed: int, capacity: int) -> None:
    module, pick = module_of(band), random.Random(seed)
    cache = KVCache(module.config, batch=3, capacity=capacity)
    texts: list[list[int]] = [[], [], []]
    for _ in range(12):
        new = pick.choice([1, 1, 2, 7, 30, 80])
        if max(map(len, texts)) + new > cache.capacity:
            lengths = [0 if pick.random() < 0.5 else len(text) for text in texts]
            texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
            cache.truncate(lengths)
            continue
        tokens = [pick.choices(range(257), k=new) for _ in texts]
        logits = module(torch.tensor(tokens), context=cache)
        texts = [text + more for text, more in zip(texts, tokens, strict=True)]
        check_last(module, logits, texts, new)
        if pick.random() < 0.5:  # by up to the last pass, each row by its own count
            lengths = [len(text) - pick.randint(0, new) for text in texts]
            texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
            cache.truncate(lengths)
        if pick.random() < 0.3:
            rows = [pick.randrange(3) for _ in texts]
            texts = [list(texts[row]) for row in rows]
            cache.select(rows)
        assert cache.lengths == [len(text) for text in texts]


@torch.no_grad()
@pytest.mark.parametrize("band", [1, 5, 40])
@pytest.mark.parametrize("read", [0, 3, 90])
def test_pasted_rows_go_on_past_the_band(band: int, read: int) -> None:
    module, pick = module_of(band), random.Random(1)
    texts = [pick.choices(range(257), k=read) for _ in range(3)]
    cache, fresh = KVCache(module.config, batch=3), KVCache(module.config, batch=1, capacity=70)
    if read:
        module(torch.tensor(texts), context=cache)
    texts[1] = pick.choices(range(257), k=65)
    module(torch.tensor(texts[1:2]), context=fresh)
    if read:
        cache.paste([1], fresh)
    else:  # a cache that has read nothing yet
        fresh.select([0, 0, 0])
        cache.paste([0, 1, 2], fresh)
        texts = [list(texts[1]) for _ in range(3)]
    for new in (1, 1, 9):
        more = [pick.choices(range(257), k=new) for _ in texts]
        texts = [text + tokens for text, tokens in zip(texts, more, strict=True)]
        check_last(module, module(torch.tensor(more), context=cache), texts, new)


@torch.no_grad()
def test_a_longer_text_takes_no_more_memory_in_banded_layers() -> None:
    module, sizes = make(n_layer=2, context_length=2048, attention_pattern=("banded",), band_width=40), []
    for length in (512, 2048):
        cache = KVCache(module.config, batch=1)
        for start in range(0, length, 64):
            module(torch.zeros(1, min(64, length - start), dtype=torch.long), context=cache)
        sizes.append(cache.nbytes)
    assert sizes == [2 * 2 * 32 * 4 * (40 + 64 - 1)] * 2  # two layers, keys and values, 32 float32 a slot


@torch.no_grad()
def test_what_a_long_prompt_took_is_given_back_by_the_next_token() -> None:
    module = make(n_layer=2, context_length=2048, attention_pattern=("banded",), band_width=40)
    cache = KVCache(module.config, batch=1)
    module(torch.zeros(1, 1000, dtype=torch.long), context=cache)
    module(torch.zeros(1, 1, dtype=torch.long), context=cache)
    assert cache.nbytes == 2 * 2 * 32 * 4 * 40


@torch.no_grad()
def test_taking_back_more_than_is_held_is_an_error() -> None:
    module = module_of(5)
    cache = KVCache(module.config, batch=1)
    for new in (100, 1, 1):  # after the first token the ring holds the band, and room for one more
        module(torch.zeros(1, new, dtype=torch.long), context=cache)
    cache.truncate([101])
    with pytest.raises(ValueError, match=r"cannot truncate row 0 to 100 tokens: .* lost those before 97"):
        cache.truncate([100])
    assert cache.lengths == [101]
    cache.truncate([0])
    check_last(module, module(torch.tensor([[1, 2, 3]]), context=cache), [[1, 2, 3]], 3)
