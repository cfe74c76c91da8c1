"""The module on its own: how it starts, what the loss counts, what dropout does."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import BYTES, TINY, make

from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.gpt import GPT


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    module = GPT(GPTConfig(n_layer=3, n_embd=128, n_head=2, vocab_size=500, context_length=64))
    expected = {"c_proj.weight": 0.02 / math.sqrt(6), "bias": 0.0}
    for name, parameter in module.state_dict().items():
        if ".ln_" in f".{name}" and name.endswith("weight"):
            assert (parameter == 1).all()
            continue
        std = next((std for end, std in expected.items() if name.endswith(end)), 0.02)
        rows = parameter[:500] if name == "wte.weight" else parameter
        assert float(rows.std()) == pytest.approx(std, rel=0.06), name
        assert abs(float(rows.mean())) <= 0.001, name


def test_padding_rows_start_as_zeros_and_are_not_in_the_logits() -> None:
    module = make(vocab_size=100, tie_head=False)
    assert module.wte.weight.shape[0] == module.lm_head.weight.shape[0] == 128
    assert not module.wte.weight[100:].any() and not module.lm_head.weight[100:].any()
    assert module(torch.tensor([[1, 2]])).shape == (1, 2, 100)


def test_loss_is_the_sum_over_targets_and_their_number() -> None:
    module, tokens = make(), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    targets = torch.tensor([[2, 3, IGNORE_INDEX, 5], [IGNORE_INDEX] * 4])
    total, count = module(tokens, targets)
    logprobs = module(tokens).log_softmax(-1)
    by_hand = -(logprobs[0, 0, 2] + logprobs[0, 1, 3] + logprobs[0, 3, 5])
    assert int(count) == 3
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, by_hand)


def test_no_targets_at_all_give_a_loss_of_zero_and_no_count() -> None:
    total, count = make()(torch.tensor([[1, 2]]), torch.full((1, 2), IGNORE_INDEX))
    assert (total.item(), count.item()) == (0.0, 0)


def test_the_loss_is_float32_in_a_bfloat16_model() -> None:
    total, _ = make().bfloat16()(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    assert total.dtype == torch.float32


def test_dropout_acts_in_training_only() -> None:
    module, tokens = make(dropout=0.3), torch.tensor([[1, 2, 3]])
    assert torch.equal(module(tokens), module(tokens))
    module.train()
    assert not torch.equal(module(tokens), module(tokens))


def test_attention_width_of_its_own_gives_the_printed_shapes() -> None:
    module = make(head_dim=24)
    assert module.h[0].attn.c_attn.weight.shape == (3 * 48, TINY.n_embd)
    assert module.h[0].attn.c_proj.weight.shape == (TINY.n_embd, 48)


def test_a_later_token_changes_nothing_before_it() -> None:
    module = make(scale=5.0)
    one, other = module(torch.tensor([[1, 2, 3, 4]])), module(torch.tensor([[1, 2, 9, 4]]))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.equal(one[:, 2:], other[:, 2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "n_embd = 768 is not a multiple of n_head = 5"),
        ({"n_layer": 0}, "n_layer = 0: must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_pattern": ("dense", "banded")}, "band_width = 0: .* need at least 1"),
        ({"attention_pattern": ("strided",), "attention_stride": -1}, "attention_stride = -1: .* need at least 1"),
        ({"band_width": 8}, "band_width = 8: attention_pattern has no banded layers"),
        ({"attention_pattern": ("diagonal",)}, "'diagonal' is unknown"),
        ({"attention_pattern": ()}, "empty"),
        ({"head_dim": -1}, "negative"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTConfig(**changes)


def test_the_byte_vocabulary_fits_the_tiny_model() -> None:
    assert BYTES.vocab_size == TINY.vocab_size
