"""Who may look at whom: the contexts of one forward pass that own positions and mask.

A context is what `GPT.forward` asks two things of: where each token stands, and how a layer's queries attend.
`Causal` is one whole text a row, `Packed` several texts a row, `kv_cache.KVCache` a text that goes on. A layer's own
pattern (dense, banded, strided) is the config's; `kernels/patterns.py` says what it means.

    B rows  T new tokens  S all tokens seen  H heads  D head_dim
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.kernels import flex, ops
from gpt2.kernels.patterns import Pattern
from gpt2.model.config import GPTConfig


class Context(Protocol):
    """What a forward pass needs to know of the tokens around it."""

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        """Start a pass over input_ids (B, T); return their positions, (T,) or (B, T)."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """q, k, v (B, H, T, D) of one layer -> (B, H, T, D)."""
        ...

    def finish(self) -> None:
        """The pass is over: all layers have attended."""
        ...


class Rows:
    """Whole rows, read in one pass: each layer attends by its pattern."""

    patterns: Sequence[Pattern]  # repeated over the layers

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        # Layers alike are compiled once only if nobody asks for their number.
        pattern = self.patterns[layer % len(self.patterns)] if len(self.patterns) > 1 else self.patterns[0]
        return ops.causal_attention(q, k, v, dropout, pattern)

    def finish(self) -> None:
        pass


class Causal(Rows):
    """Each row is one text from its start; a token sees itself and what is before it."""

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        check_room(input_ids.size(1), config)
        self.patterns = causal_patterns(config)
        flex.prepare(self.patterns, input_ids)
        return torch.arange(input_ids.size(1), device=input_ids.device)


class Packed(Rows):
    """Several texts a row, told apart by segment_ids (B, T): none sees another, each counts positions from 0.

    Tokens of one segment stand together; the number itself means nothing beyond its row.
    """

    def __init__(self, segment_ids: Tensor) -> None:
        self.segment_ids = segment_ids

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        if self.segment_ids.shape != input_ids.shape:
            raise ValueError(f"segment_ids {tuple(self.segment_ids.shape)} != input_ids {tuple(input_ids.shape)}")
        ids = self.segment_ids
        index = torch.arange(ids.size(1), device=ids.device)
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        first = torch.where(starts, index, 0).cummax(dim=1).values  # (B, T) where each token's segment begins
        positions = index - first
        check_room(int(positions.max()) + 1, config)
        self.patterns = patterns(config, first)
        flex.prepare(self.patterns, input_ids)
        return positions


def patterns(config: GPTConfig, first: Tensor | None = None) -> list[Pattern]:
    """The layers' patterns, to be repeated; alike ones are one. `first` (B, T): see Pattern."""
    kinds: dict[tuple[int, int], Pattern] = {}
    pairs = [(config.window(layer), config.stride(layer)) for layer in range(len(config.attention_pattern))]
    found = [kinds.setdefault(pair, Pattern(*pair, first)) for pair in pairs]
    return found if len(kinds) > 1 else found[:1]


causal_patterns = functools.lru_cache(maxsize=8)(patterns)  # so that what is made of them serves every pass


def check_room(length: int, config: GPTConfig) -> None:
    """Past the context length GPT-2 has no position: say so instead of crashing in the embedding."""
    if length > config.context_length:
        raise UserError(
            f"{length} tokens do not fit the model's context of {config.context_length}; "
            "shorten the text, or generate with --overflow slide or stop"
        )
