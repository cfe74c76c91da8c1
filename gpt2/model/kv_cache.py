"""The keys and values of tokens already read, so that each new token costs one token's work.

A slot's index is its token's position. Rows may differ in length: a batch of prompts is padded on the right,
read in one pass, and `truncate` then drops the padding; what lies past a row's length is never looked at and is
overwritten by the next tokens. The same call takes back drafted tokens.

    B rows  T new tokens  S slots in use  H heads  D head_dim
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.kernels import ops
from gpt2.kernels.patterns import visible
from gpt2.model.config import GPTConfig
from gpt2.model.masks import causal_patterns, check_room


class KVCache:
    """Contiguous room for `capacity` tokens of `batch` rows in every layer."""

    def __init__(
        self,
        config: GPTConfig,
        batch: int = 1,
        capacity: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.patterns = causal_patterns(config)
        self.capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layer, batch, config.n_head, self.capacity, config.head_dim)
        # Zeros, as attention gives slots that a shorter row has not filled weight 0, and 0 times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch
        self._masks: dict[tuple[int, int], Tensor | None] = {}  # (B, 1, T, S) of each pattern, None: no need of one
        self._slots = torch.empty(0, dtype=torch.long)
        self._new = 0

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        batch, self._new = input_ids.shape
        if batch != len(self.lengths):
            raise ValueError(f"the cache holds {len(self.lengths)} rows, input_ids has {batch}")
        check_room(max(self.lengths) + self._new, config)
        if max(self.lengths) + self._new > self.capacity:
            raise UserError(f"{max(self.lengths) + self._new} tokens do not fit a cache made for {self.capacity}")
        starts = torch.tensor(self.lengths, device=input_ids.device)
        self._slots = starts[:, None] + torch.arange(self._new, device=input_ids.device)  # (B, T)
        self._masks = {}
        return self._slots

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]  # (B, H, capacity, D)
        used = max(self.lengths) + self._new
        if self._ragged:
            index = self._slots[:, None, :, None].expand_as(k)
            keys.scatter_(2, index, k.to(keys.dtype))
            values.scatter_(2, index, v.to(values.dtype))
        else:
            keys[:, :, self.lengths[0] : used] = k
            values[:, :, self.lengths[0] : used] = v
        pattern = self.patterns[layer % len(self.patterns)]
        if used == self._new > 1:  # all rows begin here
            return ops.causal_attention(q, k, v, dropout, pattern)
        mask = self._mask(pattern.window, pattern.stride)
        keys, values = keys[:, :, :used].to(q.dtype), values[:, :, :used].to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=dropout)

    def finish(self) -> None:
        self.lengths = [length + self._new for length in self.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget every token from the given position on, row by row; it can only shorten."""
        if len(lengths) != len(self.lengths) or any(
            not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)
        ):
            raise ValueError(f"cannot truncate rows of {self.lengths} tokens to {list(lengths)}")
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; a row may be taken several times (one prompt, many samples)."""
        index = torch.tensor(list(rows), device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lengths = [self.lengths[row] for row in rows]

    def paste(self, rows: Sequence[int], other: KVCache) -> None:
        """Put another cache's rows in the place of these."""
        index, used = torch.tensor(list(rows), device=self.keys.device), max(other.lengths)
        self.keys[:, index, :, :used] = other.keys[:, :, :, :used]
        self.values[:, index, :, :used] = other.values[:, :, :, :used]
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length

    def _mask(self, window: int, stride: int) -> Tensor | None:
        """Who sees which slots, or None where one token of each row sees them all."""
        used = max(self.lengths) + self._new
        if 0 < used <= window:
            window = 0
        if (window, stride) not in self._masks:
            keys = torch.arange(used, device=self._slots.device)
            needed = window or stride > 1 or self._new > 1 or self._ragged
            self._masks[window, stride] = visible(self._slots, keys, window, stride)[:, None] if needed else None
        return self._masks[window, stride]

    @property
    def _ragged(self) -> bool:
        return any(length != self.lengths[0] for length in self.lengths)
