"""Attention over a band in plain torch: blocks of queries against the blocks of keys that their band reaches.

For every device and number format; float32 on processors is what it is made for. Rows and heads lie one behind another
as blocks of QUERIES tokens, so that block i's keys are the blocks i - m to i, one stretch of memory: a batched product
reads overlapping stretches where they lie. In the first m blocks of a head that stretch begins in another head's keys;
these are masked. Some blocks at a time, so that their scores stay in the processor's cache; backward makes the
probabilities again. Work and memory grow with T times the band.

    B rows  H heads  T tokens  D head_dim  Q QUERIES  n blocks of a head  m + 1 blocks of a band, K = (m + 1) Q keys
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.kernels.blocks import BAND_SCORES, QUERIES

LOWEST = float("-inf")


class BandedAttention(torch.autograd.Function):
    """q, k, v (B, H, T, D) -> (B, H, T, D): a token sees itself and the window - 1 before it, none before `first`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, first: Tensor | None) -> Tensor:
        band = Band(q, window, first)
        queries, keys, values = band.blocks(q), band.stretches(k), band.stretches(v)
        results = torch.empty_like(queries)
        for part in band.parts():
            torch.bmm(band.probabilities(queries, keys, part), values[part], out=results[part])
        out = band.whole(results, q.dtype)
        ctx.save_for_backward(q, k, v, out)
        ctx.window, ctx.first = window, first
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        band = Band(q, ctx.window, ctx.first)
        queries, grads, keys, values = band.blocks(q), band.blocks(grad), band.stretches(k), band.stretches(v)
        means = band.blocks(out).mul_(grads).sum(-1, keepdim=True)  # of the scores' gradients, by the probabilities
        d_q, d_k, d_v = torch.empty_like(queries), band.zeros(), band.zeros()
        for part in band.parts():
            weights = band.probabilities(queries, keys, part)  # (some, Q, K)
            band.add(d_v, part, torch.bmm(weights.mT, grads[part]))
            slopes = torch.bmm(grads[part], values[part].mT).sub_(means[part]).mul_(weights)
            torch.bmm(slopes, keys[part], out=d_q[part])
            band.add(d_k, part, torch.bmm(slopes.mT, queries[part]))
        d_q, d_k, d_v = d_q.mul_(band.scale), d_k[band.before :].mul_(band.scale), d_v[band.before :]
        return band.whole(d_q, q.dtype), band.whole(d_k, k.dtype), band.whole(d_v, v.dtype), None, None


class Band:
    """How rows and heads of q's shape lie as blocks, and which keys their queries see."""

    def __init__(self, q: Tensor, window: int, first: Tensor | None) -> None:
        self.shape, self.device, self.scale = q.shape, q.device, q.size(3) ** -0.5
        self.per_head = -(-q.size(2) // QUERIES)  # n
        self.count = q.size(0) * q.size(1) * self.per_head
        self.before = -(-(window - 1) // QUERIES)  # m
        self.keys = (self.before + 1) * QUERIES  # K
        self.masks = self._masks(window)
        self.first = None if first is None else self._first_keys(first)

    def parts(self) -> Iterator[slice]:
        """Blocks that are worked on at a time."""
        room = BAND_SCORES * torch.get_num_threads() if self.device.type == "cpu" else 64 * BAND_SCORES
        size = max(1, room // (QUERIES * self.keys))
        return (slice(start, min(start + size, self.count)) for start in range(0, self.count, size))

    def zeros(self) -> Tensor:
        """Room for m blocks and then those of all heads, float32."""
        return torch.zeros(self.before + self.count, QUERIES, self.shape[3], device=self.device)

    def blocks(self, x: Tensor, before: int = 0) -> Tensor:
        """(B, H, T, D) -> (before + B H n, Q, D) in float32, zeros before the first head and behind each one's end."""
        b, h, t, d = self.shape
        out = x.new_zeros(before + self.count, QUERIES, d, dtype=torch.float32)
        out[before:].view(b, h, self.per_head * QUERIES, d)[:, :, :t] = x
        return out

    def stretches(self, x: Tensor) -> Tensor:
        """Each block's keys or values: (B H n, K, D), overlapping in memory."""
        d = x.size(3)
        return self.blocks(x, self.before).as_strided((self.count, self.keys, d), (QUERIES * d, d, 1))

    def whole(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """(B H n, Q, D) -> (B, H, T, D), a token's heads side by side in memory, as the model merges them."""
        b, h, t, d = self.shape
        out = blocks.new_empty(b, t, h, d, dtype=dtype).transpose(1, 2)
        return out.copy_(blocks.view(b, h, self.per_head * QUERIES, d)[:, :, :t])

    def add(self, total: Tensor, part: slice, stretches: Tensor) -> None:
        """Sum what overlapping stretches (some, K, D) say of the same keys into total (m + B H n, Q, D)."""
        pieces = stretches.view(stretches.size(0), self.before + 1, QUERIES, -1)
        for place in range(self.before + 1):
            total[part.start + place : part.stop + place] += pieces[:, place]

    def probabilities(self, queries: Tensor, keys: Tensor, part: slice) -> Tensor:
        """(some, Q, K) of the blocks in `part`."""
        index = torch.arange(part.start, part.stop, device=self.device)
        scores = self.masks[(index % self.per_head).clamp(max=self.before)]
        if self.first is not None:
            row, place = index // (self.shape[1] * self.per_head), index % self.per_head
            key = (place[:, None] - self.before) * QUERIES + torch.arange(self.keys, device=self.device)
            scores.masked_fill_(key[:, None, :] < self.first[row, place, :, None], LOWEST)
        return scores.baddbmm_(queries[part], keys[part].mT, alpha=self.scale).softmax(-1)

    def _masks(self, window: int) -> Tensor:
        """What is added to the scores of a head's block 0, 1, ... and of the m-th and all later ones: (m + 1, Q, K)."""
        query = torch.arange(QUERIES, device=self.device)[:, None] + self.before * QUERIES
        key = torch.arange(self.keys, device=self.device)
        hidden = (key > query) | (key <= query - window)
        start = (self.before - torch.arange(self.before + 1, device=self.device)) * QUERIES  # of the head's own keys
        hidden = hidden | (key < start[:, None, None])
        return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, LOWEST)

    def _first_keys(self, first: Tensor) -> Tensor:
        """(B, T) -> (B, n, Q); queries behind the end see something, so that their softmax has a sum."""
        b, t = first.shape
        padded = first.new_zeros(b, self.per_head * QUERIES)
        padded[:, :t] = first
        return padded.view(b, self.per_head, QUERIES)


@torch.compiler.disable  # its loops would be unrolled
def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, first: Tensor | None = None) -> Tensor:
    """Attention (B, H, T, D) over `window` tokens, with `first` (B, T) none before a token's own text."""
    out: Tensor = BandedAttention.apply(q, k, v, window, first)  # type: ignore[no-untyped-call]
    return out
