"""More tokens for a model that is there: rows behind its vocabulary, all that it knew unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT

TOKEN_ROWS = ("wte.weight", "lm_head.weight", "lm_head.bias")  # a row for each token


@torch.no_grad()
def grow_vocabulary(module: GPT, vocab_size: int, seed: int = 0) -> None:
    """Give the model, in place, a vocabulary of `vocab_size` tokens; a smaller number than it has changes nothing.

    An untied head grows in the same way as the embedding, a head's bias by its mean.
    """
    if vocab_size <= module.config.vocab_size:
        return
    grown = grower(module.config, vocab_size, seed)
    module.config = replace(module.config, vocab_size=vocab_size)
    tied, embedding, head = module.config.tie_head, module.wte, module.lm_head

    def parameter(name: str) -> nn.Parameter:
        old = module.get_parameter(name)
        return nn.Parameter(grown(name, old), old.requires_grad)

    embedding.weight, embedding.num_embeddings = parameter("wte.weight"), module.config.padded_vocab_size
    head.weight = embedding.weight if tied else parameter("lm_head.weight")
    head.out_features = module.config.padded_vocab_size
    if head.bias is not None:
        head.bias = parameter("lm_head.bias")


def grower(config: GPTConfig, vocab_size: int, seed: int = 0) -> Callable[[str, Tensor], Tensor]:
    """What a parameter of a model of `config`, named and given, becomes for `vocab_size` tokens, or stays.

    A new token's row is the mean of the old ones with the spread of a fresh model around it: a token that is as likely
    as the average one, so that the old ones' probabilities hardly change (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). Asked for in TOKEN_ROWS' order: the dice go on.
    """
    old, generator = config.vocab_size, torch.Generator().manual_seed(seed)
    padded = replace(config, vocab_size=max(old, vocab_size)).padded_vocab_size

    def grown(name: str, tensor: Tensor) -> Tensor:
        if vocab_size <= old or name not in TOKEN_ROWS:
            return tensor
        known = tensor[:old]
        rows = tensor.new_zeros(padded, *tensor.shape[1:])
        rows[:old] = known
        noise = torch.randn(vocab_size - old, *tensor.shape[1:], generator=generator) * (tensor.dim() > 1)
        rows[old:vocab_size] = known.float().mean(dim=0).to(rows) + config.init_std * noise.to(rows)
        return rows

    return grown
