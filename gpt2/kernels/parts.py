"""The two parts of a block on a processor, as autograd Functions that keep their input and no more than they must.

A norm's output, and GELU's, are made again in backward (again.py), where the passes that need them cost as much without
it; a layer keeps 10 C numbers a token in place of 16. Both compute what norm, layers and GELU compute one by one.

    N rows (tokens)  C n_embd  F width of a linear layer's output
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.kernels import again, matmul, rowwise
from gpt2.kernels.buffers import bits, rows_of, workspaces

Norm = tuple[Tensor, Tensor | None, float]  # gain (C), shift (C), epsilon


class NormLinear(torch.autograd.Function):
    """layer_norm(x) @ weight' + bias, x (..., C), weight (F, C), bias (F) or None, cut into `pieces` along F."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, weight: Tensor, bias: Tensor | None,
        pieces: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.save_for_backward(x, gain, shift, weight)
        ctx.eps, ctx.has_bias = eps, bias is not None
        (unit,) = workspaces(x.dtype, rows_of(x).shape)
        normed(x, (gain, shift, eps), unit)
        return matmul.forwards(unit, weight, bias).view(*x.shape[:-1], weight.size(0)).chunk(pieces, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *pieces: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, weight = ctx.saved_tensors
        grad = rows_of(joined(pieces))
        narrow = rows_of(x).shape
        d_unit, unit, spare = workspaces(x.dtype, narrow, narrow, matmul.spare_shape(grad, rows_of(x)))
        matmul.backwards(grad, weight, out=d_unit)
        d_x, *d_norm = normed_backward(x, d_unit, (gain, shift, ctx.eps), unit)
        d_weight = matmul.weight_gradient(grad, unit, spare) if ctx.needs_input_grad[4] else None
        d_bias = grad.sum(0) if ctx.has_bias and ctx.needs_input_grad[5] else None
        return d_x, *d_norm, None, d_weight, d_bias, None


class NormMlp(torch.autograd.Function):
    """gelu(layer_norm(x) @ up' + up_bias) @ down' + down_bias: x (..., C), up (F, C), down (C, F)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None, eps: float, up: Tensor, up_bias: Tensor | None,
        down: Tensor, down_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        unit, high = workspaces(x.dtype, rows_of(x).shape, (rows_of(x).size(0), up.size(0)))
        normed(x, (gain, shift, eps), unit)
        inner = matmul.forwards(unit, up, up_bias)
        rowwise.gelu(bits(inner), bits(high))
        ctx.save_for_backward(x, gain, shift, up, down, inner)
        ctx.eps, ctx.biases = eps, (up_bias is not None, down_bias is not None)
        return matmul.forwards(high, down, down_bias).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, up, down, inner = ctx.saved_tensors
        grad, narrow = rows_of(grad), rows_of(x).shape
        d_inner, high, d_unit, unit, spare = workspaces(
            x.dtype, inner.shape, inner.shape, narrow, narrow, matmul.spare_shape(grad, inner)
        )
        matmul.backwards(grad, down, out=d_inner)
        again.gelu_backward_again(bits(inner), bits(d_inner), bits(high))
        d_down = matmul.weight_gradient(grad, high, spare) if ctx.needs_input_grad[6] else None
        matmul.backwards(d_inner, up, out=d_unit)
        d_x, *d_norm = normed_backward(x, d_unit, (gain, shift, ctx.eps), unit)
        d_up = matmul.weight_gradient(d_inner, unit, spare) if ctx.needs_input_grad[4] else None
        trained = [has and ctx.needs_input_grad[place] for has, place in zip(ctx.biases, (5, 7), strict=True)]
        d_biases = [part.sum(0) if wanted else None for part, wanted in zip((d_inner, grad), trained, strict=True)]
        return d_x, *d_norm, None, d_up, d_biases[0], d_down, d_biases[1]


def normed(x: Tensor, norm: Norm, out: Tensor) -> None:
    """out (N, C) = layer norm of x (..., C)."""
    gain, shift, eps = norm
    again.layer_norm(bits(rows_of(x)), *vectors(gain, shift), np.float32(eps), bits(out))


def normed_backward(x: Tensor, grad: Tensor, norm: Norm, unit: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, gain and shift from grad (N, C); `unit` (N, C) gets the norm's output once more."""
    gain, shift, eps = norm
    rows, d_x = rows_of(x), x.new_empty(grad.shape)
    sums = np.empty((2, -(-rows.size(0) // again.BLOCK), rows.size(1)), np.float32)
    inputs = (bits(rows), bits(grad), *vectors(gain, shift), np.float32(eps))
    again.layer_norm_backward(*inputs, bits(d_x), sums[0], sums[1], bits(unit))
    d_gain, d_shift = torch.from_numpy(sums.sum(1)).to(gain.dtype)
    return d_x.view(x.shape), d_gain, None if shift is None else d_shift


def vectors(gain: Tensor, shift: Tensor | None) -> tuple[Any, Any]:
    """Copies of both in float32 (see `bits`), no shift as zeros."""
    wide = gain.detach().to(torch.float32, copy=True)
    bias = torch.zeros_like(wide) if shift is None else shift.detach().to(torch.float32, copy=True)
    return wide.numpy(), bias.numpy()


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """cat(pieces, -1); if they already lie so in one memory, that memory and nothing copied."""
    first, place = pieces[0], pieces[0].storage_offset()
    width = sum(piece.size(-1) for piece in pieces)
    for piece in pieces:
        apart = piece.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        if apart or piece.storage_offset() != place or piece.stride() != first.stride():
            return torch.cat(list(pieces), -1)
        place += piece.size(-1)
    return first.as_strided((*first.shape[:-1], width), first.stride())
