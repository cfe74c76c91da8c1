"""More tokens for a model that is there: rows behind its vocabulary, all that it knew unchanged."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT


@torch.no_grad()
def grow_vocabulary(module: GPT, vocab_size: int, seed: int = 0) -> None:
    """Give the model, in place, a vocabulary of `vocab_size` tokens; a smaller number than it has changes nothing.

    A new token's row is the mean of the old ones with the spread of a fresh model around it: a token that is as likely
    as the average one, so that the old ones' probabilities hardly change (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). An untied head grows in the same way, a head's bias by its mean.
    """
    old = module.config.vocab_size
    if vocab_size <= old:
        return
    config = replace(module.config, vocab_size=vocab_size)
    generator = torch.Generator().manual_seed(seed)

    def grown(tensor: Tensor) -> nn.Parameter:
        """(old rows padded, ...) -> (new rows padded, ...)."""
        known = tensor[:old]
        rows = tensor.new_zeros(config.padded_vocab_size, *tensor.shape[1:])
        rows[:old] = known
        noise = torch.randn(vocab_size - old, *tensor.shape[1:], generator=generator) * (tensor.dim() > 1)
        rows[old:vocab_size] = known.float().mean(dim=0).to(rows) + config.init_std * noise.to(rows)
        return nn.Parameter(rows, tensor.requires_grad)

    module.config = config
    embedding, head = module.wte, module.lm_head
    embedding.weight, embedding.num_embeddings = grown(embedding.weight), config.padded_vocab_size
    head.weight = embedding.weight if config.tie_head else grown(head.weight)
    head.out_features = config.padded_vocab_size
    if head.bias is not None:
        head.bias = grown(head.bias)
