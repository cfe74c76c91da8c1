"""The keys and values of banded layers: of each row only the tokens that one still to come may see.

The token at position p lies in slot p modulo S. A pass of T tokens has S = band_width + T - 1 slots at least, so that
what it overwrites is out of sight for its first token, and for those that are read where it is taken back.

    L banded layers  B rows  T new tokens  S slots  W band_width  H heads  D head_dim
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels.patterns import visible
from gpt2.model.config import GPTConfig

SPARE = 64  # slots that may be left over by a longer pass before the ring is laid anew


class Ring:
    """Room for the band of `batch` rows in `layers` layers. Keys and values are (L, B, H, S, D), S by the last passes.

    Rows have at most `capacity` tokens: with as many slots nothing is ever overwritten.
    """

    def __init__(
        self,
        config: GPTConfig,
        layers: int,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.window, self.capacity = config.band_width, capacity
        # Zeros, as attention gives slots that nothing was written to weight 0, and 0 times NaN would be NaN.
        self.keys = torch.zeros((layers, batch, config.n_head, 0, config.head_dim), dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lost = [0] * batch  # positions below these may have been overwritten
        self._positions = torch.empty(0, dtype=torch.long)  # (B, T)
        self._mask: Tensor | None = None  # (B, 1, T, S)

    @property
    def size(self) -> int:
        """Slots a row."""
        return self.keys.size(3)

    def begin(self, lengths: Sequence[int], positions: Tensor) -> None:
        """Make room for a pass whose new tokens stand at these positions (B, T), after `lengths` tokens of each row."""
        self._fit(positions.size(1), lengths)
        self._positions, self._mask = positions, None

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Remember the pass's keys and values (B, H, T, D)."""
        index = (self._positions % self.size)[:, None, :, None].expand_as(k)
        for memory, new in ((self.keys[layer], k), (self.values[layer], v)):
            memory.scatter_(2, index, new.to(memory.dtype))

    def attend(self, layer: int, q: Tensor, dropout: float) -> Tensor:
        """Let q (B, H, T, D) look back over the band."""
        if self._mask is None:
            self._mask = self._seen()
        keys, values = self.keys[layer].to(q.dtype), self.values[layer].to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask, dropout_p=dropout)

    def finish(self, lengths: Sequence[int]) -> None:
        """The rows have so many tokens now."""
        self.lost = [max(lost, length - self.size) for lost, length in zip(self.lost, lengths, strict=True)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Check that the rows can go on from these lengths: within the last pass, or from their start."""
        for row, length in enumerate(lengths):
            if length > 0 and self._first(length) < self.lost[row]:
                raise ValueError(
                    f"cannot truncate row {row} to {length} tokens: its banded layers have lost those before "
                    f"{self.lost[row]}, and look back on {self.window}"
                )
        self.lost = [lost if length else 0 for lost, length in zip(self.lost, lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        index = torch.tensor(list(rows), device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lost = [self.lost[row] for row in rows]

    def paste(self, rows: Sequence[int], other: Ring, lengths: Sequence[int]) -> None:
        """Put another ring's rows, of so many tokens, in the place of these."""
        if not self.size:
            self._fit(1, [0] * len(self.lost))
        index = torch.tensor(list(rows), device=self.keys.device)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            part = torch.zeros_like(mine[:, index])
            self._carry(theirs, part, lengths)
            mine[:, index] = part
        for row, length in zip(rows, lengths, strict=True):
            self.lost[row] = self._first(length)

    def _seen(self) -> Tensor:
        """Which slots the new tokens see (B, 1, T, S), by the token that was last put into each, if any was."""
        end = self._positions[:, -1:]
        held = end - (end - torch.arange(self.size, device=end.device)) % self.size  # (B, S)
        seen = visible(self._positions, held, self.window) & (held >= 0)[:, None]
        return seen[:, None]

    def _fit(self, new: int, lengths: Sequence[int]) -> None:
        """Lay the ring anew where it is too small for a pass of `new` tokens, or much too large."""
        need = min(self.capacity, self.window + new - 1)
        if need <= self.size <= need + SPARE:
            return
        before, shape = (self.keys, self.values), (*self.keys.shape[:3], need, self.keys.size(4))
        self.keys, self.values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        if before[0].size(3):
            for old, fresh in zip(before, (self.keys, self.values), strict=True):
                self._carry(old, fresh, lengths)
            self.lost = [max(lost, self._first(length)) for lost, length in zip(self.lost, lengths, strict=True)]

    def _carry(self, old: Tensor, fresh: Tensor, lengths: Sequence[int]) -> None:
        """Copy the band of rows of so many tokens (L, B, H, S, D) to a ring of another size."""
        count = min(self.window - 1, max(lengths))
        ends = torch.tensor(list(lengths), device=old.device)[:, None]
        places = (ends - 1 - torch.arange(count, device=old.device)).clamp(min=0)[:, None, :, None]  # (B, 1, count, 1)
        shape = (*old.shape[:3], count, old.size(4))
        kept = old.gather(3, (places % old.size(3)).expand(shape))
        fresh.scatter_(3, (places % fresh.size(3)).expand(shape), kept.to(fresh.dtype))

    def _first(self, length: int) -> int:
        """The first position that a token at position `length` sees."""
        return max(0, length - self.window + 1)
