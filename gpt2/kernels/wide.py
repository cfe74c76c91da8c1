"""Products of many tokens with packed bytes where AVX2 is all there is: in 16 bits, two of them to a lane.

AVX2 has no product of bytes that sums four; what `tile_bytes` makes of its others takes four instructions for each
token and step. For many tokens it pays to lay a block's weights out in 16 bits first: then it is a product and an
addition, and the sums of six tokens fit the registers. They are whole numbers: a text gets the same bits either way.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels import features
from gpt2.kernels.lanes import BYTES64, GROUP, I16, I32, I64, INT4, INT8, INTS, LANES, Emitter
from gpt2.kernels.vectors import scaled_sums

WIDE_TALL = 6  # tokens of a tile: twelve of sixteen registers for their sums
STEPS = 4  # pairs of columns between two jumps


@intrinsic(prefer_literal=True)
def widen_weights(typingctx: Any, kind: Any, w: Any, columns: Any, out: Any) -> Any:
    """out (columns / 2, 16, 2) = a block of INT8 or INT4 weights, their offsets taken back, in 16 bits."""
    stored = kind.literal_value
    halves = 2 if stored == INT4 else 1  # weights to a byte: one of each half of a group

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, w, columns, out = args
        emit = Emitter(builder)
        with cgutils.for_range(builder, builder.udiv(columns, I64(4 * halves))) as loop:
            both = emit.load(emit.at(w, loop.index, 64), BYTES64, 1)
            if stored == INT8:
                _store_wide(emit, both, 128, emit.at(out, loop.index, 128))
            else:
                group, step = builder.udiv(loop.index, I64(8)), builder.urem(loop.index, I64(8))
                place = emit.at(emit.at(out, group, GROUP * LANES * 2), step, 128)
                _store_wide(emit, builder.and_(both, ir.Constant(BYTES64, [0x0F] * 64)), 8, place)
                high = builder.lshr(both, ir.Constant(BYTES64, [4] * 64))
                _store_wide(emit, high, 8, emit.at(place, GROUP * LANES))
        return context.get_dummy_value()

    return types.void(kind, *(types.int64,) * 3), code


def _store_wide(emit: Emitter, weights: Any, offset: int, out: Any) -> None:
    """(16 rows, 4 columns) of bytes -> (2, 16, 2) of 16 bits, `offset` less."""
    builder, none = emit.builder, ir.Constant(BYTES64, ir.Undefined)
    for pair in range(2):
        places = [4 * lane + 2 * pair + i for lane in range(LANES) for i in range(2)]
        two = builder.shuffle_vector(weights, none, ir.Constant(ir.VectorType(I32, 32), places))
        wide = builder.zext(two, ir.VectorType(I16, 32))
        emit.store(builder.sub(wide, ir.Constant(wide.type, [offset] * 32)), emit.at(out, 64 * pair), 2)


@intrinsic(prefer_literal=True)
def tile_shorts(typingctx: Any, kind: Any, w: Any, scales: Any, per: Any, x: Any, x_stride: Any, x_scales: Any,
                group_stride: Any, groups: Any, out: Any, out_stride: Any, bias: Any, add: Any) -> Any:  # fmt: skip
    """`tile_bytes` of WIDE_TALL tokens for weights as `widen_weights` has them; x and its stride in 16 bits."""
    stored = kind.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, w, scales, per, x, x_stride, x_scales, group_stride, groups, out, out_stride, bias, add = args
        if not features.by_avx2():
            return context.get_dummy_value()  # never called then, but compiled
        emit = Emitter(builder)
        rows = [emit.separate(emit.at(x, builder.mul(I64(m), x_stride), 2)) for m in range(WIDE_TALL)]
        wholes = [emit.variables(1, INTS) for _ in rows]

        def add_group(index: Any, corner: Any) -> None:
            block, here = emit.at(w, index, 2 * GROUP * LANES), [emit.at(row, index, 2 * GROUP) for row in rows]
            with cgutils.for_range(builder, I64(GROUP // 2 // STEPS)) as loop:
                first = builder.mul(loop.index, I64(STEPS))
                for step in range(STEPS):
                    weights = emit.load(emit.at(emit.at(block, first, 64), 64 * step), INTS, 1)
                    for row, (place,) in zip(here, wholes, strict=True):
                        two = emit.load(emit.at(emit.at(row, first, 4), 4 * step), I32, 2)
                        builder.store(emit.dot_shorts(builder.load(place), weights, two), place)

        sums = scaled_sums(emit, wholes, groups, (scales, per), (x_scales, group_stride), stored == INT8, add_group)
        emit.finish(sums, out, out_stride, bias, add)
        return context.get_dummy_value()

    return types.void(kind, *(types.int64,) * 12), code
