"""Who sees whom in a layer; as a mask, the oracle of every faster form of sparse attention.

A layer's pattern is two numbers. `window`: how far a token looks back, in tokens, itself among them, 0 without bound;
`stride`: how far apart the tokens are that it sees. Dense is (0, 1), a band of w is (w, 1), the Sparse Transformer's
strided head is (0, s).

    B rows  T queries  S keys  D head_dim
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def visible(queries: Tensor, keys: Tensor, window: int = 0, stride: int = 1) -> Tensor:
    """Positions of queries (..., T) and keys (..., S) -> which keys each query sees, (..., T, S) booleans."""
    back = queries[..., :, None] - keys[..., None, :]
    seen = back >= 0
    if window:
        seen &= back < window
    if stride > 1:
        seen &= back % stride == 0
    return seen


@dataclass(frozen=True, eq=False)
class Pattern:
    """What the tokens of whole rows see of each other in one layer.

    `first` (B, T), where a row holds several texts: the place in its row at which each token's text begins.
    """

    window: int = 0
    stride: int = 1
    first: Tensor | None = None
    kept: dict[Any, Any] = field(default_factory=dict)  # what a device's kernels make of it, for all layers alike

    def is_causal(self, length: int) -> bool:
        """Whether a token of rows so long sees all that is before it."""
        return self.first is None and self.stride == 1 and not 0 < self.window < length

    def mask(self, length: int, device: torch.device) -> Tensor:
        """The pattern itself: (T, T), or (B, 1, T, T) with texts of their own."""
        index = torch.arange(length, device=device)
        seen = visible(index, index, self.window, self.stride)
        return seen if self.first is None else seen & (index >= self.first[:, None, :, None])

    def lows(self, length: int) -> npt.NDArray[np.int32]:
        """The first token that each one sees, (1 or B, T), of a pattern without stride."""
        index = torch.arange(length)
        low = (index - self.window + 1).clamp(min=0) if self.window else torch.zeros_like(index)
        low = low[None] if self.first is None else torch.maximum(low, self.first)
        return low.to(torch.int32).contiguous().numpy()

    def folded(self, length: int) -> Pattern:
        """What is left of a stride s where each of its s residue classes is a row of its own (see `fold`)."""
        if ("folded", length) in self.kept:
            found: Pattern = self.kept["folded", length]
            return found
        window, first = -(-self.window // self.stride), None
        if self.first is not None:
            last = self.first[:, -1:].expand(-1, -length % self.stride)  # what a token sees first never falls
            padded = torch.cat((self.first, last), 1)
            classes = torch.arange(self.stride, device=padded.device)
            first = -((classes - padded.view(padded.size(0), -1, self.stride)) // self.stride)  # rounded up
            first = first.clamp(min=0).transpose(1, 2).flatten(0, 1)
        self.kept["folded", length] = Pattern(window, 1, first)
        return self.folded(length)


DENSE = Pattern()


def masked_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, pattern: Pattern) -> Tensor:
    """Attention (B, H, T, D) under the mask itself: T x T work and memory, the plain form."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.mask(q.size(2), q.device), dropout_p=dropout)


def fold(x: Tensor, stride: int) -> Tensor:
    """(B, H, T, D) -> (B s, H, T / s, D), T rounded up: tokens that are a multiple of s apart become a row."""
    x = F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, -x.size(2) % stride))  # (B, T', H, D)
    b, t, h, d = x.shape
    return x.view(b, t // stride, stride, h, d).transpose(1, 2).reshape(b * stride, t // stride, h, d).transpose(1, 2)


def unfold(x: Tensor, stride: int, length: int) -> Tensor:
    """The way back from `fold`: (B s, H, T / s, D) -> (B, H, T, D)."""
    rows, h, t, d = x.shape
    x = x.transpose(1, 2).reshape(rows // stride, stride, t, h, d).transpose(1, 2)  # (B, T / s, s, H, D)
    return x.reshape(rows // stride, t * stride, h, d)[:, :length].transpose(1, 2)
