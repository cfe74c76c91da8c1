"""The head and its loss, part of the tokens at a time, in plain torch: for GPUs, and where no gradient is wanted.

N tokens  C n_embd  V vocabulary, memory's padding included
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def loss_only(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, rows: int
) -> Tensor:
    """Sum of cross-entropies in float32, the logits of `rows` tokens at a time: for passes without gradient."""
    total = torch.zeros((), device=hidden.device)
    for part in range(0, hidden.size(0), rows):
        logits = F.linear(hidden[part : part + rows], head, bias).float()
        total += F.cross_entropy(logits, targets[part : part + rows], ignore_index=ignore_index, reduction="sum")
        del logits  # before the next are made
    return total


class ChunkedHeadLoss(torch.autograd.Function):
    """hidden (N, C), head (V, C), targets (N) -> sum of losses, float32; the gradient is made in forward.

    float32 logits exist for `rows` tokens at a time; the head's gradient, unless it is frozen, is summed in float32
    over the parts. Rows of head from `vocabulary` on take no part.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, ignore_index: int, vocabulary: int, rows: int
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for first in range(0, hidden.size(0), rows):
            part = slice(first, first + rows)
            logits = F.linear(hidden[part], head)  # (rows, V)
            total += make_gradient(logits, targets[part], ignore_index, vocabulary)
            torch.mm(logits, head, out=d_hidden[part])
            if d_head is not None:
                d_head += logits.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        d_head = None if d_head is None else (d_head * grad).to(d_hidden.dtype)
        return d_hidden * grad, d_head, None, None, None, None


def make_gradient(logits: Tensor, targets: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """logits (rows, V) become the gradient of their summed loss, in place; returns that loss, float32."""
    kept = targets != ignore_index
    wanted = torch.where(kept, targets, 0)[:, None]  # (rows, 1)
    real = logits[:, :vocabulary].float()
    norms = real.logsumexp(-1, keepdim=True)
    losses = torch.where(kept[:, None], norms - real.gather(1, wanted), 0.0)
    gradient = real.sub_(norms).exp_()  # in the memory of the float32 logits
    gradient.scatter_add_(1, wanted, torch.full_like(norms, -1.0))
    logits[:, :vocabulary] = gradient.mul_(kept[:, None])
    logits[:, vocabulary:] = 0.0
    return losses.sum()
