"""A linear layer's three products in 8-bit floats, for GPUs whose matrix units have them (twice bfloat16's rate).

Micikevicius et al. 2022, "FP8 Formats for Deep Learning": what goes forward in E4M3 (three digits after the point),
what comes back in E5M2 (more range). Each tensor has one scale, from the largest number that it holds now: nothing is
carried from step to step, so a resumed run has the same bits. Sums are float32, results have the input's dtype.

    N tokens  C width of the input  F width of the output
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
SIDE = 16  # the matrix units take sides that are multiples of it
SMALLEST = 1e-12  # largest number of a tensor that is scaled up no further: it may hold nothing but zeros


class Product(torch.autograd.Function):
    """x (..., C) @ weight (F, C)' + bias (F) -> (..., F); N, C and F are multiples of SIDE."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, row_scale = shorten(x.flatten(0, -2), FORWARD)
        matrix, matrix_scale = shorten(weight, FORWARD)
        # Not the short matrix: it would outlive the pass, where FSDP gives a whole weight's memory back between two.
        ctx.save_for_backward(rows, row_scale, weight)
        ctx.has_bias = bias is not None
        out = multiply(rows, matrix.T, row_scale, matrix_scale, x.dtype, fast=True)
        out = out if bias is None else out + bias
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        rows, row_scale, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        back, back_scale = shorten(flat, BACKWARD)
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            matrix, matrix_scale = shorten(weight, FORWARD)
            by_x = multiply(back, by_columns(matrix), back_scale, matrix_scale, grad.dtype)
            by_x = by_x.view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            by_weight = multiply(back.T.contiguous(), by_columns(rows), back_scale, row_scale, grad.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            by_bias = flat.sum(0)
        return by_x, by_weight, by_bias


def shorten(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in 8 bits, and what these numbers are to be multiplied by (float32, a scalar)."""
    most = torch.finfo(dtype).max
    scale = most / x.abs().amax().float().clamp(min=SMALLEST)
    return (x.float() * scale).clamp(-most, most).to(dtype).contiguous(), scale.reciprocal()


def by_columns(x: Tensor) -> Tensor:
    """The same matrix with its columns, not its rows, contiguous: the right side of a product has to lie so."""
    return x.T.contiguous().T


def multiply(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a @ b with its scales; a lies by rows, b by columns. `fast`: sums of fewer digits, enough on the way forward."""
    return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast)
