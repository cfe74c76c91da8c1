"""Products with a frozen matrix that may lie in a short form: it is made dense for each product, and never kept so.

N tokens  C width of the input  F width of the output
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Short(Protocol):
    """A matrix (F, C) in a form of its own."""

    @property
    def shape(self) -> Any: ...

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(F, C) in that dtype, newly made."""
        ...


Matrix = Tensor | Short


class Low(NamedTuple):
    """A product of low rank, scale x B A, that is trained beside a frozen matrix; A (r, C), B (F, r), float32."""

    A: Tensor
    B: Tensor
    scale: float


class FrozenLayer(NamedTuple):
    """A linear layer whose weight (F, C) and bias (F) are not trained, with or without a product of low rank."""

    weight: Matrix
    bias: Tensor | None
    low: Low | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """A and B, where autograd is to see them."""
        return (None, None) if self.low is None else (self.low.A, self.low.B)


def dense(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix itself where it is a tensor of that dtype, else a copy that is."""
    return matrix.detach().to(dtype) if isinstance(matrix, Tensor) else matrix.dense(dtype)


class FrozenProduct(torch.autograd.Function):
    """x (..., C) @ matrix (F, C)' + bias (F) or None; a gradient for x alone, and nothing kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Short, bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix.dense(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.matrix.dense(grad.dtype), None, None
