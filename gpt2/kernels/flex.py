"""Training sparse attention on CUDA: PyTorch's FlexAttention leaves out the blocks of 128 x 128 that nobody sees.

Both the kernel and the table of blocks are compiled; a table is made once for all layers of a kind. On a processor
the same code runs uncompiled and forward only, which is how it is tested.

    B rows  H heads  T tokens  D head_dim
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt2.kernels.patterns import Pattern

NARROWEST = 16  # head_dim that its kernels have


def usable(q: Tensor) -> bool:
    """Whether attention over q (B, H, T, D) is training where FlexAttention is compiled to a kernel.

    Elsewhere lengths change from call to call, and compiling for them would take longer than they do.
    """
    return q.device.type == "cuda" and torch.is_grad_enabled() and q.size(3) >= NARROWEST and have_triton()


def attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Attention (B, H, T, D) under a pattern without stride."""
    out: Tensor = compiled(flex_attention, q.device)(q, k, v, block_mask=block_mask(pattern, q.size(2), q.device))
    return out


def block_mask(pattern: Pattern, length: int, device: torch.device) -> BlockMask:
    """The table of blocks for rows of `length` tokens, kept with the pattern."""
    key = (length, device)
    if key not in pattern.kept:
        rows = None if pattern.first is None else pattern.first.size(0)
        make = compiled(create_block_mask, device)
        pattern.kept[key] = make(rule(pattern), rows, None, length, length, device=device)
    mask: BlockMask = pattern.kept[key]
    return mask


def prepare(patterns: Sequence[Pattern], input_ids: Tensor) -> None:
    """Make what layers share for rows (B, T), before they run: code that torch.compile reads then finds it there."""
    for pattern in dict.fromkeys(patterns):
        length = input_ids.size(1)
        if pattern.stride > 1:
            pattern, length = pattern.folded(length), -(-length // pattern.stride)
        if input_ids.device.type == "cuda" and have_triton() and not pattern.is_causal(length):
            block_mask(pattern, length, input_ids.device)


def rule(pattern: Pattern) -> Callable[..., Tensor]:
    """Who sees whom, number by number: the same as `patterns.visible` and `first`."""
    window, first = pattern.window, pattern.first

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = j <= i
        if window:
            seen = seen & (i - j < window)
        if first is not None:
            seen = seen & (j >= first[b, i])
        return seen

    return sees


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function as it runs fast on this device."""
    return _compile(function) if device.type == "cuda" else function


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@functools.cache
def have_triton() -> bool:
    """Whether the compiler of kernels for GPUs is installed."""
    return importlib.util.find_spec("triton") is not None
