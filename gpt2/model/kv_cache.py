"""The keys and values of tokens already read, so that each new token costs one token's work.

A slot's index is its token's position. Rows may differ in length: a batch of prompts is padded on the right,
read in one pass, and `truncate` then drops the padding; what lies past a row's length is never looked at and is
overwritten by the next tokens. The same call takes back drafted tokens. Banded layers keep no more than they can still
look at, see ring.py.

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
from gpt2.model.ring import Ring


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
        banded = [config.window(layer) > 0 for layer in range(config.n_layer)]
        self._places = [banded[:layer].count(banded[layer]) for layer in range(config.n_layer)]  # among their kind
        shape = (banded.count(False), batch, config.n_head, self.capacity, config.head_dim)
        # Zeros, as attention gives slots that a shorter row has not filled weight 0, and 0 times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.ring = Ring(config, sum(banded), batch, self.capacity, dtype, device) if any(banded) else None
        self.lengths = [0] * batch
        self._masks: dict[int, Tensor | None] = {}  # (B, 1, T, S) of each stride, None: no need of one
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
        if self.ring:
            self.ring.begin(self.lengths, self._slots)
        return self._slots

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        place, used = self._places[layer], max(self.lengths) + self._new
        pattern = self.patterns[layer % len(self.patterns)]
        if self.ring and pattern.window:
            self.ring.write(place, k, v)
        else:
            self._write(place, k, v, used)
        if used == self._new > 1:  # all rows begin here
            return ops.causal_attention(q, k, v, dropout, pattern)
        if self.ring and pattern.window:
            return self.ring.attend(place, q, dropout)
        keys, values = self.keys[place, :, :, :used].to(q.dtype), self.values[place, :, :, :used].to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask(pattern.stride), dropout_p=dropout)

    def _write(self, place: int, k: Tensor, v: Tensor, used: int) -> None:
        keys, values = self.keys[place], self.values[place]  # (B, H, capacity, D)
        if self._ragged:
            index = self._slots[:, None, :, None].expand_as(k)
            keys.scatter_(2, index, k.to(keys.dtype))
            values.scatter_(2, index, v.to(values.dtype))
        else:
            keys[:, :, self.lengths[0] : used] = k
            values[:, :, self.lengths[0] : used] = v

    def finish(self) -> None:
        self.lengths = [length + self._new for length in self.lengths]
        if self.ring:
            self.ring.finish(self.lengths)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget every token from the given position on, row by row; it can only shorten.

        With banded layers, by no more than the last pass, or to nothing: else what comes would look for keys that were
        overwritten. ValueError then, as for lengths that are longer.
        """
        if len(lengths) != len(self.lengths) or any(
            not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)
        ):
            raise ValueError(f"cannot truncate rows of {self.lengths} tokens to {list(lengths)}")
        if self.ring:
            self.ring.truncate(lengths)
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; a row may be taken several times (one prompt, many samples)."""
        index = torch.tensor(list(rows), device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        if self.ring:
            self.ring.select(rows)
        self.lengths = [self.lengths[row] for row in rows]

    def paste(self, rows: Sequence[int], other: KVCache) -> None:
        """Put another cache's rows in the place of these."""
        index, used = torch.tensor(list(rows), device=self.keys.device), max(other.lengths)
        self.keys[:, index, :, :used] = other.keys[:, :, :, :used]
        self.values[:, index, :, :used] = other.values[:, :, :, :used]
        if self.ring and other.ring:
            self.ring.paste(rows, other.ring, other.lengths)
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        held = [self.keys, self.values, *((self.ring.keys, self.ring.values) if self.ring else ())]
        return sum(tensor.nbytes for tensor in held)

    def _mask(self, stride: int) -> Tensor | None:
        """Who sees which slots, or None where one token of each row sees them all."""
        if stride not in self._masks:
            keys = torch.arange(max(self.lengths) + self._new, device=self._slots.device)
            needed = stride > 1 or self._new > 1 or self._ragged
            self._masks[stride] = visible(self._slots, keys, stride=stride)[:, None] if needed else None
        return self._masks[stride]

    @property
    def _ragged(self) -> bool:
        return any(length != self.lengths[0] for length in self.lengths)
