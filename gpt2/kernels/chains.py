"""Innermost loops of attention where AVX2 is all there is: tiles whose sums go on from call to call, number by number.

A sum is the same whether its products come at once or a page at a time, for one token or for six. Bfloat16 is stored
there, never multiplied: AVX2 has no products of it.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels.lanes import BFLOAT16, F32, FLOAT32, FLOATS, I64, INTS, LANES, Emitter

UNROLL = 4  # rows between two jumps


def size_of(stored: int) -> int:
    """Bytes of a stored number."""
    return 4 if stored == FLOAT32 else 2 if stored == BFLOAT16 else 1


def row_at(emit: Emitter, stored: int, w: Any, first: Any, step: int) -> Any:
    """Row `first` + `step` of w (rows, LANES) as float32, for steps in turn; of bfloat16 two rows lie side by side."""
    if stored != BFLOAT16:
        return emit.lanes(emit.at(emit.at(w, first, LANES * size_of(stored)), LANES * size_of(stored) * step), stored)
    pairs = emit.load(emit.at(emit.at(w, first, 2 * LANES), 4 * LANES * (step // 2)), INTS, 1)
    return emit.high(pairs) if step % 2 else emit.low(pairs)


@intrinsic(prefer_literal=True)
def chain_tile(typingctx: Any, m: Any, kind: Any, w: Any, x: Any, x_stride: Any, rows: Any, out: Any, out_stride: Any,
               add: Any) -> Any:  # fmt: skip
    """out (M, 16) = x (M, rows) @ w (rows, 16), or goes on from what it holds if `add` is not 0; x is float32.

    w is stored as a kind; `rows` is a multiple of UNROLL, strides count numbers.
    """
    tokens, stored = m.literal_value, kind.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, w, x, x_stride, rows, out, out_stride, add = args
        emit = Emitter(builder)
        left = [emit.separate(emit.at(x, builder.mul(I64(i), x_stride), 4)) for i in range(tokens)]
        places = [emit.at(out, builder.mul(I64(i), out_stride), 4) for i in range(tokens)]
        sums = emit.variables(tokens, FLOATS)
        with builder.if_then(builder.icmp_signed("!=", add, I64(0))):
            for total, place in zip(sums, places, strict=True):
                builder.store(emit.load(place, FLOATS, 4), total)
        with cgutils.for_range(builder, builder.udiv(rows, I64(UNROLL))) as loop:
            first = builder.mul(loop.index, I64(UNROLL))
            for step in range(UNROLL):
                row = row_at(emit, stored, w, first, step)
                for number, total in zip(left, sums, strict=True):
                    value = emit.spread(emit.load(emit.at(emit.at(number, first, 4), 4 * step), F32, 4))
                    builder.store(emit.multiply_add(value, row, builder.load(total)), total)
        for total, place in zip(sums, places, strict=True):
            emit.store(builder.load(total), place)
        return context.get_dummy_value()

    return types.void(m, kind, *(types.int64,) * 7), code


@intrinsic(prefer_literal=True)
def spread_rows(typingctx: Any, kind: Any, w: Any, rows: Any, out: Any) -> Any:
    """out (rows, LANES) float32 = w, stored as a kind; `rows` is a multiple of UNROLL."""
    stored = kind.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, w, rows, out = args
        emit = Emitter(builder)
        with cgutils.for_range(builder, builder.udiv(rows, I64(UNROLL))) as loop:
            first = builder.mul(loop.index, I64(UNROLL))
            for step in range(UNROLL):
                place = emit.at(emit.at(out, first, 4 * LANES), 4 * LANES * step)
                emit.store(row_at(emit, stored, w, first, step), place)
        return context.get_dummy_value()

    return types.void(kind, *(types.int64,) * 3), code
