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
        self.stacks = [Stack(parameters) for parameters in by_shape(named).values()]

    @torch.no_grad()
    def step(self, factor: float, momentum: float) -> None:
        """One step at `factor` times the full learning rate."""
        for stack in self.stacks:
            gradient = stack.gradient()  # (N, rows, columns)
            stack.momentum.lerp_(gradient, 1 - momentum)
            direction = orthogonalise(gradient.lerp_(stack.momentum, momentum).to(self.dtype)).float()
            rows, columns = direction.shape[1:]
            rate = self.learning_rate * factor
            stack.move(direction, rate * max(1.0, rows / columns) ** 0.5, 1 - rate * self.weight_decay)

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
    """All matrices of one shape; `parts` of a parameter are matrices of their own."""

    def __init__(self, named: list[tuple[str, nn.Parameter, int]]) -> None:
        self.names = [name for name, _, _ in named]
        self.parameters = parameters = [(parameter, parts) for _, parameter, parts in named]
        first, parts = parameters[0]
        count = sum(parts for _, parts in parameters)
        self.momentum = torch.zeros(count, first.size(0) // parts, first.size(1), device=first.device)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the momentum, one for each parameter's entries."""
        at = 0
        for name, (_, parts) in zip(self.names, self.parameters, strict=True):
            yield from entries(name, self.momentum[at : at + parts].flatten(0, 1))
            at += parts

    def gradient(self) -> Tensor:
        """A fresh stack of the gradients, (N, rows, columns)."""
        gradients = [(p.grad, parts) for p, parts in self.parameters]
        return torch.cat([g.view(parts, -1, g.size(1)) for g, parts in gradients if g is not None])

    def move(self, direction: Tensor, rate: float, shrink: float) -> None:
        """Decay each matrix, then step against its direction."""
        at = 0
        for parameter, parts in self.parameters:
            matrices = parameter.view(parts, -1, parameter.size(1))
            matrices.mul_(shrink).add_(direction[at : at + parts], alpha=-rate)
            at += parts


def by_shape(named: list[tuple[str, nn.Parameter]]) -> dict[tuple[int, int], list[tuple[str, nn.Parameter, int]]]:
    """Shape of one matrix -> the parameters that hold such matrices, and how many each."""
    groups: dict[tuple[int, int], list[tuple[str, nn.Parameter, int]]] = {}
    for name, parameter in named:
        parts = 3 if name.endswith("c_attn.weight") else 1
        groups.setdefault((parameter.size(0) // parts, parameter.size(1)), []).append((name, parameter, parts))
    return groups


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
