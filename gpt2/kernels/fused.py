"""Training's operations on a processor, as autograd Functions over numba's kernels, in bfloat16 and float32.

Each computes what its plain counterpart in ops.py computes, to the number format's precision; tests hold them to it.
What forward keeps is changed where it lies: a pass goes backward once.

    B rows  T tokens  C n_embd  H heads  D head_dim  V vocabulary
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.kernels import features, flash, flash_float, matmul, rowwise
from gpt2.kernels.blocks import HEAD_ROWS
from gpt2.kernels.buffers import bits, matrix, rows_of, workspaces
from gpt2.kernels.features import HAS_BF16
from gpt2.kernels.lanes import LANES


class Linear(torch.autograd.Function):
    """x (..., C) @ weight (F, C)' + bias (F) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.has_bias = x.shape, bias is not None
        return matmul.forwards(rows_of(x), weight, bias).view(*x.shape[:-1], weight.size(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, d_weight = rows_of(grad), None
        if x is not None:
            rows = rows_of(x)
            (spare,) = workspaces(grad.dtype, matmul.spare_shape(grad, rows))
            d_weight = matmul.weight_gradient(grad, rows, spare)
        d_bias = grad.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return matmul.backwards(grad, weight).view(ctx.shape), d_weight, d_bias


class Gelu(torch.autograd.Function):
    """gelu, tanh form, of a tensor of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        rowwise.gelu(matrix(x), matrix(out))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        rowwise.gelu_backward(matrix(x), matrix(grad.contiguous()), matrix(out))
        return out


class CausalAttention(torch.autograd.Function):
    """q, k, v (B H, T, D) -> (B H, T, D). Keeps the T x T probabilities for backward: for short sequences."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.scale = np.float32(q.size(-1) ** -0.5)
        probabilities = torch.bmm(q, k.mT)  # (B H, T, T)
        rowwise.causal_softmax(bits(probabilities), ctx.scale)
        ctx.save_for_backward(q, k, v, probabilities)
        return torch.bmm(probabilities, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, probabilities = ctx.saved_tensors
        scores = torch.bmm(grad, v.mT)
        rowwise.causal_softmax_backward(bits(probabilities), bits(scores), ctx.scale)
        return torch.bmm(scores, k), torch.bmm(scores.mT, q), torch.bmm(probabilities.mT, grad)


class FlashAttention(torch.autograd.Function):
    """q, k, v (B, H, T, D) -> (B, H, T, D), by flash.py or flash_float.py: no T x T is kept, no head copied out.

    lows (1 or B, T), int32: the first token that each one sees.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lows: Any) -> Tensor:
        if not all(lies_by_heads(part) and part.stride() == q.stride() for part in (q, k, v)):
            q, k, v = (by_heads(part) for part in (q, k, v))
        b, h, t, d = q.shape
        out, norms = q.new_empty(b, t, h, d), torch.empty(b, h, t)
        ctx.scale, ctx.lows = np.float32(d**-0.5), lows
        tiles = flash_float if q.dtype == torch.float32 else flash
        tiles.forward(flat(q), flat(k), flat(v), steps(q), h, t, lows, bits(out), norms.numpy(), ctx.scale)
        ctx.save_for_backward(q, k, v, norms)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, norms = ctx.saved_tensors
        b, h, t, d = q.shape
        grad = grad if lies_by_heads(grad) else by_heads(grad)
        out = q.new_empty(b, t, 3, h, d)
        inputs = (flat(q), flat(k), flat(v), steps(q), h, t, ctx.lows, flat(grad), steps(grad))
        tiles = flash_float if q.dtype == torch.float32 else flash
        tiles.backward(*inputs, norms.numpy(), ctx.scale, bits(out))
        return *out.permute(2, 0, 3, 1, 4), None


def lies_by_heads(part: Tensor) -> bool:
    """Whether the heads of a token, seen as (B, H, T, D), lie side by side in memory."""
    return part.stride(3) == 1 and part.stride(1) == part.size(3)


def by_heads(part: Tensor) -> Tensor:
    """A copy that does, same shape."""
    return part.transpose(1, 2).contiguous().transpose(1, 2)


def flat(part: Tensor) -> Any:
    """The memory from the first number to the last, as numpy has it."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    return bits(part.as_strided((extent,), (1,)))


def steps(part: Tensor) -> tuple[int, int]:
    """How far apart two rows and two tokens lie."""
    return part.stride(0), part.stride(2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v (B, H, T, D) -> (B, H, T, D), by the Function that suits; T at most STORED_ATTENTION unless `flashes`."""
    b, h, t, d = q.shape
    if flashes(q):
        return flash_attention(q, k, v, np.zeros((1, t), np.int32))
    folded = (part.reshape(b * h, t, d) for part in (q, k, v))
    out: Tensor = CausalAttention.apply(*folded)  # type: ignore[no-untyped-call]
    return out.view(b, h, t, d)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, lows: Any) -> Tensor:
    """q, k, v (B, H, T, D) -> (B, H, T, D), where a token sees from the one in `lows` (1 or B, T) up to itself."""
    out: Tensor = FlashAttention.apply(q, k, v, lows)  # type: ignore[no-untyped-call]
    return out


def flashes(q: Tensor) -> bool:
    """Whether there are tiles for heads (..., D) of this width and number format, and the processor's instructions."""
    if q.dtype == torch.float32:
        return features.by_floats() and q.size(-1) % LANES == 0
    return HAS_BF16 and q.size(-1) % flash.COLUMNS == 0


class HeadLoss(torch.autograd.Function):
    """hidden (N, C), head (V, C), bias (V) or None, targets (N) -> sum of the losses, float32.

    The gradient is made in forward, HEAD_ROWS tokens at a time: their logits become their gradient where they lie, and
    the products with it follow at once, none for a head that is frozen. Rows of head from `vocabulary` on are padding.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, vocabulary: int
    ) -> Tensor:
        losses = torch.empty(hidden.size(0))
        _, trained, trained_bias, *_ = ctx.needs_input_grad
        d_hidden, d_head = hidden.new_empty(hidden.shape), head.new_empty(head.shape) if trained else None
        if d_head is not None and len(hidden) == 0:
            d_head.zero_()
        d_bias = torch.zeros(bias.shape) if bias is not None and trained_bias else None
        for first in range(0, hidden.size(0), HEAD_ROWS):
            part = slice(first, first + HEAD_ROWS)
            rows = hidden[part]
            logits, spare = workspaces(rows.dtype, (len(rows), len(head)), matmul.spare_shape(rows, rows))
            matmul.forwards(rows, head, bias, out=logits)  # (rows, V)
            rowwise.cross_entropy(bits(logits), vocabulary, targets[part].numpy(), losses[part].numpy(), ignore_index)
            matmul.backwards(logits, head, out=d_hidden[part])
            if d_head is not None:
                matmul.weight_gradient(logits, rows, spare, out=d_head, add=first > 0)
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_head, d_bias)
        return losses.sum(dtype=torch.float64).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head, d_bias = ctx.saved_tensors
        if d_bias is not None:
            d_bias = (d_bias * grad).to(d_hidden.dtype)
        d_head = None if d_head is None else d_head.mul_(grad)
        return d_hidden.mul_(grad), d_head, d_bias, None, None, None


class Embedding(torch.autograd.Function):
    """weight[ids], its gradient summed in float32: in bfloat16 a frequent token loses most of its gradient.

    With `later` (a list) the gradient is left there instead: rows that were read, and what comes to them.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, later: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.later = weight.shape, later
        return weight.index_select(0, ids.flatten()).view(*ids.shape, weight.size(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        flat = ids.flatten().numpy().astype(np.int64, copy=False)
        order = np.argsort(flat, kind="stable")
        starts = np.flatnonzero(np.diff(flat[order], prepend=-1, append=-1))
        read, rows = torch.from_numpy(flat[order[starts[:-1]]]), grad.new_empty(len(starts) - 1, ctx.shape[1])
        rowwise.sum_rows(order, starts, matrix(grad.contiguous()), bits(rows))
        if ctx.later is None:
            return rows.new_zeros(ctx.shape).index_copy_(0, read, rows), None, None
        ctx.later.append((read, rows))
        return None, None, None


def join_gradients(weight: Tensor) -> None:
    """For an embedding that is the head too: its rows are added to the head's gradient where that lies.

    Autograd would make a table of zeros for them and a third one for the sum.
    """
    later: list[tuple[Tensor, Tensor]] = []

    def join(weight: Tensor) -> None:
        assert weight.grad is not None
        while later:
            weight.grad.index_add_(0, *later.pop())

    weight.rows_later = later  # type: ignore[attr-defined]
    weight.register_post_accumulate_grad_hook(join)  # type: ignore[no-untyped-call]
