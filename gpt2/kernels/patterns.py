"""Who sees whom in a layer, as a mask: the oracle of every faster form of sparse attention.

A pattern is two numbers. `window`: how far a token looks back, in tokens, itself among them, 0 without bound; `stride`:
how far apart the tokens are that it sees. Dense is (0, 1), a band of w is (w, 1), the Sparse Transformer's strided head
is (0, s).

    T queries  S keys  D head_dim
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def visible(queries: Tensor, keys: Tensor, window: int = 0, stride: int = 1) -> Tensor:
    """Positions of queries (..., T) and keys (..., S) -> which keys each query sees, (..., T, S) booleans."""
    back = queries[..., :, None] - keys[..., None, :]
    seen = back >= 0
    if window:
        seen &= back < window
    if stride > 1:
        seen &= back % stride == 0
    return seen


def masked_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int, stride: int) -> Tensor:
    """Causal attention (..., T, D) under the mask itself: T x T work and memory, the plain form."""
    index = torch.arange(q.size(-2), device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible(index, index, window, stride), dropout_p=dropout)
