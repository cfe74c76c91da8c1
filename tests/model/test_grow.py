"""A grown vocabulary: old tokens as they were, new ones as likely as the average one, files still Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import BYTES, make, write_model

import gpt2
from gpt2.model.grow import grow_vocabulary
from gpt2.tokenizer.added import add_tokens

IDS = torch.tensor([[1, 2, 256, 5]])


@pytest.mark.parametrize("changes", [{}, {"tie_head": False}, {"tie_head": False, "head_bias": True}])
@pytest.mark.parametrize("size", [258, 330])
def test_old_rows_and_logits_are_unchanged(changes: dict[str, bool], size: int) -> None:
    module = make(**changes)
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    logits = module(IDS)
    grow_vocabulary(module, size)
    assert module.config.vocab_size == size
    assert (module.lm_head.weight is module.wte.weight) == module.config.tie_head
    for name, tensor in module.named_parameters():
        rows = len(before[name]) if name not in ("wte.weight", "lm_head.weight", "lm_head.bias") else 257
        assert torch.equal(tensor[:rows], before[name][:rows])
        assert not tensor[size:].any() or rows != 257
    grown = module(torch.cat([IDS, torch.tensor([[size - 1]])], dim=1))
    assert grown.shape == (1, 5, size)
    assert torch.allclose(grown[:, :4, :257], logits, atol=1e-6)
    assert grown[:, :4, 257:].max() < logits.max(), "no new token is the likeliest"


def test_a_smaller_vocabulary_changes_nothing() -> None:
    module = make()
    weight = module.wte.weight
    grow_vocabulary(module, 200)
    assert module.config.vocab_size == 257 and module.wte.weight is weight


def test_the_folder_of_a_grown_model_is_transformers(tmp_path: Path) -> None:
    import transformers

    module, tokenizer = make(), add_tokens(BYTES, ["<sep>", "<end>"])
    grow_vocabulary(module, tokenizer.vocab_size)
    write_model(tmp_path, module, tokenizer)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(tmp_path)("a<sep>b")["input_ids"]])
    assert ids.tolist() == [[97, 257, 98]] == [tokenizer.encode("a<sep>b")]
    assert torch.allclose(theirs(ids).logits, module(ids), atol=1e-5)
    assert gpt2.load(tmp_path).config.vocab_size == 259
