"""A block's matrices with LoRA beside them, in training on a processor: as fused.py and parts.py.

Nothing but lora_A and lora_B gets a gradient; what is kept for backward is what the plain model keeps, and r numbers a
token for each matrix. Frozen matrices may lie in a short form (frozen.py).

    N rows (tokens)  C n_embd  F width of a layer's output  r rank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.kernels import again, matmul, rowwise
from gpt2.kernels.buffers import bits, rows_of, workspaces
from gpt2.kernels.frozen import FrozenLayer, dense
from gpt2.kernels.parts import Norm, joined, normed, normed_backward


class Layer:
    """One layer during a pass: its low rank in the pass's number format, its products."""

    def __init__(self, layer: FrozenLayer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight, self.bias, _ = layer
        self.scale = layer.low.scale if layer.low else 0.0
        self.A, self.B = (None if part is None else part.detach().to(dtype) for part in layer.factors)

    def forwards(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (N, C) -> the layer's output (N, F), and x A' (N, r), which `gradients` wants to see again."""
        out = matmul.forwards(x, dense(self.weight, self.dtype), self.bias)
        if self.A is None or self.B is None:
            return out, None
        narrow = x @ self.A.T
        return out.addmm_(narrow, self.B.T, alpha=self.scale), narrow

    def narrowed(self, grad: Tensor) -> Tensor | None:
        """The gradient of x A' (N, r) from the output's (N, F)."""
        return None if self.B is None else (grad @ self.B).mul_(self.scale)

    def backwards(self, grad: Tensor, d_narrow: Tensor | None, out: Tensor | None = None) -> Tensor:
        """The gradient of x (N, C) from the output's (N, F)."""
        d_x = matmul.backwards(grad, dense(self.weight, self.dtype), out)
        return d_x if self.A is None or d_narrow is None else d_x.addmm_(d_narrow, self.A)

    def gradients(
        self, grad: Tensor, x: Tensor, narrow: Tensor | None, d_narrow: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of A (r, C) and B (F, r)."""
        if narrow is None or d_narrow is None:
            return None, None
        return d_narrow.T @ x, (grad.T @ narrow).mul_(self.scale)


class Linear(torch.autograd.Function):
    """x (..., C) -> (..., F) through a layer with low rank, whose A and B are handed over beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLayer, A: Tensor, B: Tensor) -> Tensor:
        ctx.layer = Layer(layer, x.dtype)
        out, narrow = ctx.layer.forwards(rows_of(x))
        ctx.save_for_backward(x, narrow)
        return out.view(*x.shape[:-1], out.size(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        layer, grad = ctx.layer, rows_of(grad)
        d_narrow = layer.narrowed(grad)
        d_x = layer.backwards(grad, d_narrow).view(x.shape) if ctx.needs_input_grad[0] else None
        return d_x, None, *layer.gradients(grad, rows_of(x), narrow, d_narrow)


class NormLinear(torch.autograd.Function):
    """`Linear` of layer_norm(x), cut into `pieces` along F; the norm is frozen too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Norm, layer: FrozenLayer, pieces: int, A: Tensor, B: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.norm, ctx.layer = norm, Layer(layer, x.dtype)
        (unit,) = workspaces(x.dtype, rows_of(x).shape)
        normed(x, norm, unit)
        out, narrow = ctx.layer.forwards(unit)
        ctx.save_for_backward(x, narrow)
        return out.view(*x.shape[:-1], out.size(-1)).chunk(pieces, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *pieces: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        layer, grad, d_x = ctx.layer, rows_of(joined(pieces)), None
        d_unit, unit = workspaces(x.dtype, rows_of(x).shape, rows_of(x).shape)
        d_narrow = layer.narrowed(grad)
        if ctx.needs_input_grad[0]:
            layer.backwards(grad, d_narrow, out=d_unit)
            d_x, *_ = normed_backward(x, d_unit, ctx.norm, unit)
        else:  # the first block of a frozen embedding
            normed(x, ctx.norm, unit)
        return d_x, None, None, None, *layer.gradients(grad, unit, narrow, d_narrow)


class NormMlp(torch.autograd.Function):
    """down(gelu(up(layer_norm(x)))), low rank beside one of the two layers or both; A and B are None without."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Norm, up: FrozenLayer, down: FrozenLayer, up_A: Tensor | None, up_B: Tensor | None,
        down_A: Tensor | None, down_B: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.norm, ctx.up, ctx.down = norm, Layer(up, x.dtype), Layer(down, x.dtype)
        unit, high = workspaces(x.dtype, rows_of(x).shape, (rows_of(x).size(0), up.weight.shape[0]))
        normed(x, norm, unit)
        inner, up_narrow = ctx.up.forwards(unit)
        rowwise.gelu(bits(inner), bits(high))
        out, down_narrow = ctx.down.forwards(high)
        ctx.save_for_backward(x, inner, up_narrow, down_narrow)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, up_narrow, down_narrow = ctx.saved_tensors
        grad, narrow = rows_of(grad), rows_of(x).shape
        d_inner, high, d_unit, unit = workspaces(x.dtype, inner.shape, inner.shape, narrow, narrow)
        d_down = ctx.down.narrowed(grad)
        ctx.down.backwards(grad, d_down, out=d_inner)
        again.gelu_backward_again(bits(inner), bits(d_inner), bits(high))
        of_down = ctx.down.gradients(grad, high, down_narrow, d_down)
        d_up = ctx.up.narrowed(d_inner)
        ctx.up.backwards(d_inner, d_up, out=d_unit)
        d_x, *_ = normed_backward(x, d_unit, ctx.norm, unit)
        of_up = ctx.up.gradients(d_inner, unit, up_narrow, d_up)
        return d_x, None, None, None, *of_up, *of_down
