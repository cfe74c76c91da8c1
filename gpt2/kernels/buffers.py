"""bfloat16 tensors as the kernels see them, and memory that is kept from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Memory:
    """A bfloat16 tensor as numpy takes it over, and holds on to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        steps = tuple(2 * step for step in tensor.stride())
        there = {"shape": tuple(tensor.shape), "typestr": "<u2", "strides": steps, "data": (tensor.data_ptr(), False)}
        self.__array_interface__ = there | {"version": 3}


def bits(tensor: Tensor) -> Any:
    """A bfloat16 tensor's memory as uint16 (numpy), nothing copied.

    Not by `Tensor.numpy`: what that has shown cannot be freed any more, and FSDP frees weights that it has gathered.
    """
    return np.asarray(Memory(tensor.detach()))


def matrix(tensor: Tensor) -> Any:
    """`bits` with all but the last dimension folded into one."""
    return bits(tensor).reshape(-1, tensor.size(-1))


def rows_of(x: Tensor) -> Tensor:
    """(..., C) -> (N, C)."""
    return x.reshape(-1, x.size(-1)).contiguous()


def workspaces(*shapes: Sequence[int]) -> list[Tensor]:
    """Matrices in bfloat16 side by side in memory that is kept from call to call: new pages cost half a product."""
    sizes = [rows * columns for rows, columns in shapes]
    if len(_kept) == 0 or _kept[0].numel() < sum(sizes):
        _kept[:] = [torch.empty(sum(sizes), dtype=torch.bfloat16)]
    parts = torch.split(_kept[0][: sum(sizes)], sizes)
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


_kept: list[Tensor] = []
