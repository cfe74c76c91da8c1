"""The three products of a linear layer on a processor, by kernels of ours where the shapes suit them, else by torch.

bfloat16 goes through products.py, float32 through products_float.py.

N rows (tokens)  C width of the input  F width of the output
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.kernels import features, products, products_float
from gpt2.kernels.blocks import NARROW
from gpt2.kernels.buffers import bits
from gpt2.kernels.features import HAS_BF16
from gpt2.kernels.lanes import LANES
from gpt2.kernels.tiles import COLUMNS

NARROW_FLOATS = 64  # a side below this is left to torch
APART = 32  # numbers added to a turned row: rows 4,096 bytes apart would share a few places of the first cache


def forwards(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x (N, C) @ weight (F, C)' + bias (F) -> (N, F)."""
    out = x.new_empty(x.size(0), weight.size(0)) if out is None else out
    if suits_floats(x, x.size(0), weight.size(0), x.size(1)):
        return multiply_floats(x, weight, out, b_turned=True, bias=bias)
    if suits(x, x.size(0), weight.size(0), x.size(1)):
        return multiply(x, weight, out, by_words=True, bias=bias)
    return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)


def backwards(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """grad (N, F) @ weight (F, C) -> (N, C)."""
    out = grad.new_empty(grad.size(0), weight.size(1)) if out is None else out
    if suits_floats(grad, grad.size(0), weight.size(1), grad.size(1)):
        return multiply_floats(grad, weight, out)
    if suits(grad, grad.size(0), weight.size(1), grad.size(1)):
        return multiply(grad, weight, out)
    return torch.mm(grad, weight, out=out)


def weight_gradient(grad: Tensor, x: Tensor, spare: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """grad (N, F)' @ x (N, C) -> (F, C), or added to out. bfloat16: the narrower of the two is turned, into `spare`."""
    (n, f), c = grad.shape, x.size(1)
    out = grad.new_empty(f, c) if out is None else out
    if suits_floats(grad, f, c, n):
        return multiply_floats(grad, x, out, a_turned=True, add=add)
    if c <= f and suits(grad, c, f, n):
        return multiply(turned(x, spare), grad, out, turn=True, add=add)
    if c > f and suits(grad, f, c, n):
        return multiply(turned(grad, spare), x, out, add=add)
    return torch.addmm(out, grad.T, x, beta=float(add), out=out)


def suits(x: Tensor, rows: int, columns: int, length: int) -> bool:
    """Whether products.py has tiles for it, and it is large enough to be worth packing."""
    even = rows % 2 == 0 and columns % COLUMNS == 0 and length % 2 == 0
    return HAS_BF16 and x.dtype == torch.bfloat16 and even and min(rows, columns, length) >= NARROW


def suits_floats(x: Tensor, rows: int, columns: int, length: int) -> bool:
    """The same of products_float.py."""
    return x.dtype == torch.float32 and features.by_floats() and min(rows, columns, length) >= NARROW_FLOATS


def multiply(
    a: Tensor, b: Tensor, out: Tensor, by_words: bool = False, bias: Tensor | None = None, add: bool = False,
    turn: bool = False,
) -> Tensor:  # fmt: skip
    """products.product, the work dealt out to torch's threads."""
    panels = (b.size(0) if by_words else b.size(1)) // COLUMNS
    threads = torch.get_num_threads()
    groups = min(panels, threads)
    parts = 1 if panels % threads == 0 else min(threads, -(-a.size(0) // products.ROWS))
    wide = torch.zeros(panels * COLUMNS) if bias is None else bias.detach().float()
    a, b = a.contiguous(), b.contiguous()
    products.product(bits(a), bits(b), by_words, wide.numpy(), add, bits(out), turn, groups, parts)
    return out


def multiply_floats(
    a: Tensor, b: Tensor, out: Tensor, a_turned: bool = False, b_turned: bool = False, bias: Tensor | None = None,
    add: bool = False,
) -> Tensor:  # fmt: skip
    """products_float.product, the work dealt out to torch's threads."""
    rows, columns = out.shape
    wide = torch.zeros(-(-columns // LANES) * LANES)
    if bias is not None:
        wide[:columns] = bias.detach()
    blocks, threads = -(-rows // products_float.BLOCK), torch.get_num_threads()
    groups = 1 if blocks >= 8 * threads else min(threads, -(-columns // LANES))
    assert out.is_contiguous()
    a, b = a.contiguous(), b.contiguous()
    room = products_float.room()
    products_float.product(bits(a), a_turned, bits(b), b_turned, wide.numpy(), add, bits(out), room, groups, threads)
    return out


def turned(x: Tensor, spare: Tensor) -> Tensor:
    """x (N, C) -> (C, N + APART), in the memory of `spare`."""
    out = spare.view(-1)[: x.size(1) * (x.size(0) + APART)].view(x.size(1), -1)
    products.transpose(bits(x), bits(out))
    return out


def spare_shape(grad: Tensor, x: Tensor) -> tuple[int, int]:
    """Of what `weight_gradient` needs for grad (N, F) and x (N, C)."""
    if grad.dtype == torch.float32:
        return 0, 0
    return min(grad.size(1), x.size(1)), x.size(0) + APART
