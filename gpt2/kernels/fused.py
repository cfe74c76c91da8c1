"""Training's operations on a processor in bfloat16, as autograd Functions over the kernels of bf16.py.

Each computes what its plain counterpart in ops.py computes, to bfloat16's precision; tests hold them to it.

    B rows  T tokens  C n_embd  H heads  D head_dim  V vocabulary
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.kernels import bf16


def bits(tensor: Tensor) -> Any:
    """A contiguous bfloat16 tensor's memory as uint16 (numpy), nothing copied."""
    return tensor.detach().view(torch.uint16).numpy()


def matrix(tensor: Tensor) -> Any:
    """`bits` with all but the last dimension folded into one."""
    return bits(tensor).reshape(-1, tensor.size(-1))


class Gelu(torch.autograd.Function):
    """gelu, tanh form, of a tensor of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        bf16.gelu(matrix(x), matrix(out))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        bf16.gelu_backward(matrix(x), matrix(grad.contiguous()), matrix(out))
        return out


class CausalAttention(torch.autograd.Function):
    """q, k, v (B H, T, D) -> (B H, T, D). Keeps the T x T probabilities for backward: for short sequences."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.scale = np.float32(q.size(-1) ** -0.5)
        probabilities = torch.bmm(q, k.mT)  # (B H, T, T)
        bf16.causal_softmax(bits(probabilities), ctx.scale)
        ctx.save_for_backward(q, k, v, probabilities)
        return torch.bmm(probabilities, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, probabilities = ctx.saved_tensors
        scores = torch.bmm(grad, v.mT)
        bf16.causal_softmax_backward(bits(probabilities), bits(scores), ctx.scale)
        return torch.bmm(scores, k), torch.bmm(scores.mT, q), torch.bmm(probabilities.mT, grad)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The Function with its rows and heads folded and unfolded."""
    b, h, t, d = q.shape
    folded = (part.reshape(b * h, t, d) for part in (q, k, v))
    out: Tensor = CausalAttention.apply(*folded)  # type: ignore[no-untyped-call]
    return out.view(b, h, t, d)


class HeadLoss(torch.autograd.Function):
    """hidden (N, C), head (V, C), bias (V) or None, targets (N) -> sum of the losses, float32.

    The logits become their gradient where they lie: one N x V tensor in bfloat16 is all there is.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int
    ) -> Tensor:
        logits = torch.nn.functional.linear(hidden, head, bias)  # (N, V)
        losses = torch.empty(hidden.size(0))
        bf16.cross_entropy(bits(logits), targets.numpy(), losses.numpy(), ignore_index)
        ctx.save_for_backward(hidden, head, logits)
        ctx.has_bias = bias is not None
        return losses.sum(dtype=torch.float64).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, d_logits = ctx.saved_tensors
        d_bias = d_logits.sum(0) * grad if ctx.has_bias else None
        return (d_logits @ head) * grad, (d_logits.T @ hidden) * grad, d_bias, None, None


class Embedding(torch.autograd.Function):
    """weight[ids], its gradient summed in float32: in bfloat16 a frequent token loses most of its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape).index_add_(0, ids.flatten(), grad.flatten(0, -2).float())
        return total.to(grad.dtype), None
