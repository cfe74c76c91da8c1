"""Sizes and costs against what the papers print."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2.model import sizes
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.masks import patterns
from gpt2.model.memory import whole
from gpt2.model.presets import PRESETS, preset

# GPT-3 Table D.1: millions of parameters, FLOPs of training on 300B tokens at 6 a parameter and token.
TABLE_D1 = {
    "gpt3-125m": (125, 2.25e20),
    "gpt3-350m": (356, 6.41e20),
    "gpt3-760m": (760, 1.37e21),
    "gpt3-xl-2048": (1320, 2.38e21),
    "gpt3-2.7b": (2650, 4.77e21),
    "gpt3-6.7b": (6660, 1.20e22),
    "gpt3-13b": (12850, 2.31e22),
    "gpt3-175b": (174600, 3.14e23),
}
GPT2 = {"gpt2-124m": 124.4, "gpt2-355m": 354.8, "gpt2-774m": 774.0, "gpt2-1558m": 1557.6}


@pytest.mark.parametrize("name", TABLE_D1)
def test_gpt3_has_the_parameters_and_flops_of_table_d1(name: str) -> None:
    millions, flops = TABLE_D1[name]
    assert sizes.parameters(PRESETS[name]) == pytest.approx(millions * 1e6, rel=0.007)
    assert 6 * sizes.parameters(PRESETS[name]) * sizes.GPT3_TOKENS == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_has_its_real_parameter_counts(name: str) -> None:
    assert round(sizes.parameters(PRESETS[name]) / 1e6, 1) == GPT2[name]


def test_flops_add_attentions_causal_half_to_six_a_weight_and_leave_positions_out() -> None:
    config = PRESETS["gpt3-175b"]
    attention = 6 * 96 * 96 * 128 * 2048
    weights = sizes.parameters(config) - 2048 * 12288
    assert sizes.training_flops_per_token(config) == 6 * weights + attention
    assert sizes.training_flops_per_token(config, 1024) == 6 * weights + attention / 2


def test_published_batches_are_those_of_table_2_1() -> None:
    printed = {"gpt3-125m": 0.5e6, "gpt3-2.7b": 1e6, "gpt3-13b": 2e6, "gpt3-175b": 3.2e6}
    for name, tokens in printed.items():
        assert sizes.PUBLISHED_ROWS[name] * 2048 == pytest.approx(tokens, rel=0.05)
    assert sizes.PUBLISHED_ROWS["gpt2-1558m"] == 512


@pytest.mark.parametrize(
    "changes", [{}, {"bias": False}, {"tie_head": False, "head_bias": True}, {"head_dim": 24}, {"n_inner": 100}]
)
def test_parameters_and_what_memory_holds_are_those_of_the_model(changes: dict[str, Any]) -> None:
    config = GPTConfig(**{"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 70, "context_length": 8, **changes})
    with torch.device("meta"):
        model = GPT(config)
    assert sizes.parameters(config) == model.parameter_count()
    assert whole(config).all == sum(p.numel() for p in model.parameters())
    hidden = [p.numel() for name, p in model.named_parameters() if name.startswith("h.") and p.dim() > 1]
    assert whole(config).hidden == sum(hidden)


BANDED: dict[str, Any] = {"attention_pattern": ("dense", "banded"), "band_width": 256}


@pytest.mark.parametrize(
    ("changes", "length"),
    [({}, 64), ({"attention_pattern": ("banded",), "band_width": 16}, 64), (BANDED, 100), (BANDED, 1000)],
)
def test_what_a_token_sees_is_what_its_masks_show(changes: dict[str, Any], length: int) -> None:
    config = preset("gpt2-124m", **changes)
    for layer, pattern in enumerate(patterns(config)[:2]):
        counted = pattern.mask(length, torch.device("cpu")).sum().item()
        ends = min(pattern.window or length, length) / 2  # what rows that are steps lie over their slope
        assert sizes.seen_tokens(config, layer, length) * length == pytest.approx(counted - ends)


def test_a_strided_layer_sees_one_in_so_many() -> None:
    config = preset("gpt2-124m", attention_pattern=("strided",), attention_stride=8)
    assert sizes.seen_tokens(config, 0, 1024) == 1024 / 16


def test_bands_take_flops_and_cached_bytes_away() -> None:
    dense, banded = preset("gpt3-125m"), preset("gpt3-125m", **BANDED)
    saved = sizes.training_flops_per_token(dense) - sizes.training_flops_per_token(banded)
    assert saved == pytest.approx(6 * 12 * 768 * (1024 - 256 * (1 - 256 / 4096)))  # of 6 layers
    assert sizes.kv_cache_bytes(banded, 256) == sizes.kv_cache_bytes(dense, 256)
    assert sizes.kv_cache_bytes(banded, 2048) == 2 * 768 * 4 * 6 * (2048 + 256)
