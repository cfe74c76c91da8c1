"""Hidden states and attention are what transformers gives out, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ODD, TINY, make, transformers_twin

from gpt2.errors import UserError
from gpt2.inference.activations import record

TOKENS = [5, 200, 7, 7, 31, 256, 0, 44, 90, 13]


@pytest.mark.parametrize("name", ["plain", "untied", "no_bias", "erf", "scale_by_layer"])
def test_hidden_states_and_attention_equal_transformers(name: str) -> None:
    module = make(scale=5.0, n_layer=3, **ODD.get(name, {"scale_by_layer": name == "scale_by_layer"}))
    seen = record(module, TOKENS)
    theirs = transformers_twin(module)(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(seen.hidden_states, torch.cat(theirs.hidden_states), rtol=0, atol=2e-5)
    torch.testing.assert_close(seen.attention, torch.cat(theirs.attentions), rtol=0, atol=2e-5)
    torch.testing.assert_close(seen.logits, theirs.logits[0], rtol=0, atol=2e-5)


BANDED = {"attention_pattern": ("dense", "banded"), "band_width": 3}


@pytest.mark.parametrize("changes", [{}, {"head_dim": 24}, {"scale_by_layer": True}, BANDED], ids=str)
def test_the_recorded_pass_is_the_models_own(changes: dict[str, object]) -> None:
    module = make(scale=5.0, **changes)
    seen = record(module, TOKENS)
    torch.testing.assert_close(seen.logits, module(torch.tensor([TOKENS]))[0].detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(2, 2, len(TOKENS)))


def test_looking_leaves_no_hooks_behind() -> None:
    module = make()
    record(module, TOKENS)
    with pytest.raises(UserError, match="do not fit"):
        record(module, [1] * (TINY.context_length + 1))
    assert not any(block._forward_pre_hooks for block in module.h)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text to look at"):
        record(make(), [])
