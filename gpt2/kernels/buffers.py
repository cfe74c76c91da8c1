"""Tensors as the kernels see them, and memory that is kept from call to call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = {torch.float32: "<f4", torch.bfloat16: "<u2"}  # numpy's names; it has no bfloat16


class Memory:
    """A tensor as numpy takes it over, and holds on to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        size, kind = tensor.element_size(), KINDS[tensor.dtype]
        steps = tuple(size * step for step in tensor.stride())
        there = {"shape": tuple(tensor.shape), "typestr": kind, "strides": steps, "data": (tensor.data_ptr(), False)}
        self.__array_interface__ = there | {"version": 3}


def bits(tensor: Tensor) -> Any:
    """A tensor's memory as numpy has it, nothing copied: float32, or bfloat16 as uint16.

    Not by `Tensor.numpy`: what that has shown cannot be freed any more, and FSDP frees weights that it has gathered.
    """
    return np.asarray(Memory(tensor.detach()))


def matrix(tensor: Tensor) -> Any:
    """`bits` with all but the last dimension folded into one."""
    return bits(tensor).reshape(-1, tensor.size(-1))


def rows_of(x: Tensor) -> Tensor:
    """(..., C) -> (N, C)."""
    return x.reshape(-1, x.size(-1)).contiguous()


def workspaces(dtype: torch.dtype, *shapes: Sequence[int]) -> list[Tensor]:
    """Matrices side by side in memory that is kept from call to call: new pages cost half a product."""
    sizes = [rows * columns for rows, columns in shapes]
    kept = _kept.by_dtype.get(dtype)
    if kept is None or kept.numel() < sum(sizes):
        kept = _kept.by_dtype[dtype] = torch.empty(sum(sizes), dtype=dtype)
    parts = torch.split(kept[: sum(sizes)], sizes)
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


class _Kept(threading.local):
    """Each thread's own: two may be at work on two models."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_kept = _Kept()
