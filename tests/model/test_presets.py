"""Every published size has its published parts, and sizes.py counts what the module has."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gpt2.errors import UserError
from gpt2.model import sizes
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.presets import PRESETS, preset

# GPT-2's are the released checkpoints' own counts; GPT-3's follow from Table 2.1 as printed.
COUNTS = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "gpt3-125m": 125_226_240,
    "gpt3-350m": 355_871_744,
    "gpt3-760m": 760_300_032,
    "gpt3-xl": 1_517_123_584,
    "gpt3-xl-2048": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_936_488_380,
    "gpt3-175b": 174_604_259_328,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_on_the_meta_device_with_its_parameter_count(name: str) -> None:
    with torch.device("meta"):
        module = GPT(PRESETS[name])
    assert module.parameter_count() == sizes.parameters(PRESETS[name])
    if name.startswith("gpt"):
        assert module.parameter_count() == COUNTS[name]


def test_gpt3_sizes_are_as_printed() -> None:
    xl, biggest = PRESETS["gpt3-xl"], PRESETS["gpt3-13b"]
    assert (xl.n_head, xl.head_dim, xl.n_embd, xl.attention_width) == (24, 128, 2048, 3072)
    assert (biggest.n_head, biggest.head_dim, biggest.n_embd, biggest.attention_width) == (40, 128, 5140, 5120)


@pytest.mark.parametrize(
    ("tie", "bias", "head_bias", "head_dim", "n_inner"),
    list(product([True, False], [True, False], [True, False], [0, 24], [0, 100])),
)
def test_counts_hold_for_every_variant(tie: bool, bias: bool, head_bias: bool, head_dim: int, n_inner: int) -> None:
    config = GPTConfig(
        n_layer=2, n_head=2, n_embd=32, vocab_size=100, context_length=16,
        tie_head=tie, bias=bias, head_bias=head_bias, head_dim=head_dim, n_inner=n_inner,
    )  # fmt: skip
    assert GPT(config).parameter_count() == sizes.parameters(config)


def test_flops_are_six_per_weight_and_token_and_attention_by_its_causal_half() -> None:
    config = GPTConfig()
    weights = 124_439_808 - 1024 * 768
    assert sizes.training_flops_per_token(config) == 6 * weights + 6 * 12 * 12 * 64 * 1024
    assert sizes.training_flops_per_token(config, 100) == 6 * weights + 6 * 12 * 12 * 64 * 100
    assert 3 * sizes.forward_flops_per_token(config) == sizes.training_flops_per_token(config)


def test_a_cached_token_of_124m_takes_72_kib() -> None:
    assert sizes.kv_cache_bytes(GPTConfig(), 1) == 2 * 12 * 768 * 4
    assert sizes.kv_cache_bytes(GPTConfig(), 10, "bfloat16") == 10 * 2 * 12 * 768 * 2


def test_a_preset_takes_changes_and_an_unknown_one_names_the_nearest() -> None:
    assert preset("gpt2-124m", vocab_size=300).vocab_size == 300
    assert preset("gpt2-124m", n_embd=384).head_dim == 32
    with pytest.raises(UserError, match="did you mean 'gpt2-124m'"):
        preset("gpt2-124")
