"""Muon: momentum whose step is made orthogonal (Jordan et al. 2024, "Muon: An optimizer for hidden layers").

torch.optim.Muon takes one matrix at a time and always works in bfloat16. Here matrices of one shape go through the
iteration together, which is what makes it cheap on small models, and a float32 run stays float32
(docs/decisions/ has the figures). The fused c_attn holds three matrices that have nothing to do with each other:
q, k and v are orthogonalised separately, always.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.distributed.shards import by_whole_matrices, layout, part
from gpt2.train.entries import entries

# Keller Jordan's quintic: steep at 0, so that five rounds bring every singular value near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon:
    """Steps hidden matrices; `named` are parameters with their names, float32, their gradients in `.grad`."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        learning_rate: float,
        weight_decay: float,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.dtype = dtype
        self.stacks = [Stack(alike) for alike in by_shape(named)]

    @torch.no_grad()
    def step(self, factor: float, momentum: float) -> None:
        """One step at `factor` times the full learning rate."""
        for stack in self.stacks:
            gradient = stack.gradient()  # (N, rows, columns)
            stack.momentum.lerp_(gradient, 1 - momentum)
            update = gradient.lerp_(stack.momentum, momentum).to(self.dtype)
            direction = by_whole_matrices(orthogonalise, update, stack.layout).float()
            rate = self.learning_rate * factor
            stack.move(direction, rate * max(1.0, stack.rows / stack.columns) ** 0.5, 1 - rate * self.weight_decay)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's momentum, live, by the names of entries.py."""
        for stack in self.stacks:
            yield from stack.tensors()

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": [stack.momentum for stack in self.stacks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stack, momentum in zip(self.stacks, state["momentum"], strict=True):
            stack.momentum.copy_(momentum)


class Stack:
    """All matrices of one shape that lie alike; a parameter's `parts` are matrices of their own.

    On a mesh this process has a part of each: tensors here are stacks of such parts, (N, some rows, some columns).
    """

    def __init__(self, named: list[tuple[str, nn.Parameter, int]]) -> None:
        self.named = named
        _, first, parts = named[0]
        self.layout = layout(first)
        self.rows, self.columns = first.size(0) // parts, first.size(1)  # of a whole matrix
        self.momentum = torch.zeros_like(torch.cat([split(part(p), n) for _, p, n in named]))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the momentum, one for each parameter's entries."""
        for name, momentum in zip([name for name, _, _ in self.named], self.per_parameter(self.momentum), strict=True):
            whole = momentum.flatten(0, 1)
            yield from entries(name, whole if self.layout is None else self.layout.wrap(whole))

    def gradient(self) -> Tensor:
        """A fresh stack of the gradients."""
        return torch.cat([split(part(p.grad), parts) for _, p, parts in self.named if p.grad is not None])

    def move(self, direction: Tensor, rate: float, shrink: float) -> None:
        """Decay each matrix, then step against its direction."""
        for (_, parameter, parts), towards in zip(self.named, self.per_parameter(direction), strict=True):
            split(part(parameter), parts).mul_(shrink).add_(towards, alpha=-rate)

    def per_parameter(self, stack: Tensor) -> tuple[Tensor, ...]:
        """A stack cut into each parameter's matrices."""
        return torch.split(stack, [parts for _, _, parts in self.named])


def split(parameter: Tensor, parts: int) -> Tensor:
    """(parts * rows, columns) -> (parts, rows, columns), the same memory."""
    return parameter.view(parts, parameter.size(0) // parts, parameter.size(1))


def by_shape(named: list[tuple[str, nn.Parameter]]) -> list[list[tuple[str, nn.Parameter, int]]]:
    """The parameters that hold matrices of one shape and lie alike on a mesh, and how many matrices each."""
    groups: dict[Any, list[tuple[str, nn.Parameter, int]]] = {}
    for name, parameter in named:
        parts = 3 if name.endswith("c_attn.weight") else 1
        lies = layout(parameter)
        alike = (parameter.size(0) // parts, parameter.size(1), lies and lies.placements)
        groups.setdefault(alike, []).append((name, parameter, parts))
    return list(groups.values())


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> the same with all singular values near 1, by Newton-Schulz rounds in their own dtype."""
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
