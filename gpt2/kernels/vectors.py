"""The innermost loops of writing on a processor, as vectors of 16: one lane for each of 16 rows of a packed matrix.

Each intrinsic here becomes straight LLVM code: M tokens against one block of 16 rows, so that a weight is loaded once
for all of them. What a token's result is made of, and in which order, does not depend on M: a text gets the same bits
alone and in a batch. Addresses are plain integers; whoever calls answers for their being right.

    M tokens of a tile  K columns (a multiple of 64)  G groups of 64 columns

The packed forms are those of gpt2/model/quant.py. 8-bit weights go through vpdpbusd (unsigned weight, signed
activation, four products a lane) where the processor has it, else through the same sum in plain vector code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels import features
from gpt2.kernels.lanes import (
    BFLOAT16,
    BYTES64,
    F32,
    FLOAT32,
    FLOATS,
    GROUP,
    I32,
    I64,
    INT4,
    INT8,
    INTS,
    LANES,
    Emitter,
)


def _integers(count: int) -> tuple[Any, ...]:
    return (types.int64,) * count


def _passes(tokens: int) -> list[tuple[int, ...]]:
    """Which columns, even ones or odd ones, are gone through together, or one after the other.

    Sixteen registers of eight numbers have room for the sums of three tokens twice, or of six once.
    """
    return [(0,), (1,)] if features.by_floats() and tokens > 3 else [(0, 1)]


@intrinsic(prefer_literal=True)
def tile_float(typingctx: Any, m: Any, kind: Any, w: Any, x: Any, x_stride: Any, columns: Any, out: Any,
               out_stride: Any, bias: Any, add: Any) -> Any:  # fmt: skip
    """out (M, 16) = x (M, columns) @ w (columns, 16) + bias, all float32 sums; `columns` is a multiple of 8.

    w holds float32 or signed bytes; strides count floats. Even and odd columns are summed apart.
    """
    tokens, stored = m.literal_value, kind.literal_value
    size = 4 if stored == FLOAT32 else 1
    unroll = 8

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, w, x, x_stride, columns, out, out_stride, bias, add = args
        emit = Emitter(builder)
        rows = [emit.separate(emit.at(x, builder.mul(I64(m), x_stride), 4)) for m in range(tokens)]
        sums = [emit.variables(tokens, FLOATS) for _ in range(2)]
        for turns in _passes(tokens):
            with cgutils.for_range(builder, builder.udiv(columns, I64(unroll))) as loop:
                first = builder.mul(loop.index, I64(unroll))
                for k in range(unroll):
                    if k % 2 in turns:
                        weights = emit.lanes(emit.at(emit.at(w, first, LANES * size), k * LANES * size), stored)
                        for m in range(tokens):
                            number = emit.load(emit.at(emit.at(rows[m], first, 4), 4 * k), F32, 4)
                            place = sums[k % 2][m]
                            builder.store(emit.multiply_add(emit.spread(number), weights, builder.load(place)), place)
                    if (k + 1) * LANES * size % 256 == 0:
                        emit.fence()
        totals = [builder.fadd(builder.load(even), builder.load(odd)) for even, odd in zip(*sums, strict=True)]
        emit.finish(totals, out, out_stride, bias, add)
        return context.get_dummy_value()

    return types.void(m, kind, *_integers(8)), code


@intrinsic(prefer_literal=True)
def tile_halves(typingctx: Any, m: Any, w: Any, x: Any, x_stride: Any, pairs: Any, out: Any, out_stride: Any, bias: Any,
                add: Any) -> Any:  # fmt: skip
    """out (M, 16) = x (M, 2 pairs) @ w (pairs, 16, 2) + bias; x and w bfloat16, x_stride counts such numbers.

    `pairs` is a multiple of 4. Products are summed in float32, those of even and odd pairs apart.
    """
    tokens = m.literal_value
    unroll = 4

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, w, x, x_stride, pairs, out, out_stride, bias, add = args
        emit = Emitter(builder)
        rows = [emit.separate(emit.at(x, builder.mul(I64(m), x_stride), 2)) for m in range(tokens)]
        sums = [emit.variables(tokens, FLOATS) for _ in range(2)]
        for turns in _passes(tokens):
            with cgutils.for_range(builder, builder.udiv(pairs, I64(unroll))) as loop:
                first = builder.mul(loop.index, I64(unroll))
                for k in (k for k in range(unroll) if k % 2 in turns):
                    weights = emit.load(emit.at(emit.at(w, first, 64), 64 * k), INTS, 1)
                    twos = [emit.load(emit.at(emit.at(row, first, 4), 4 * k), I32, 1) for row in rows]
                    found = emit.dots_halves([builder.load(place) for place in sums[k % 2]], weights, twos)
                    for place, total in zip(sums[k % 2], found, strict=True):
                        builder.store(total, place)
                emit.fence()
        totals = [builder.fadd(builder.load(even), builder.load(odd)) for even, odd in zip(*sums, strict=True)]
        emit.finish(totals, out, out_stride, bias, add)
        return context.get_dummy_value()

    return types.void(m, *_integers(8)), code


@intrinsic(prefer_literal=True)
def tile_bytes(typingctx: Any, m: Any, kind: Any, w: Any, scales: Any, per: Any, x: Any, x_stride: Any, x_scales: Any,
               x_sums: Any, group_stride: Any, groups: Any, out: Any, out_stride: Any, bias: Any,
               add: Any) -> Any:  # fmt: skip
    """out (M, 16) = x (M, K) @ w (K, 16) + bias for INT8 and INT4 weights and 8-bit activations.

    scales (G / per, 16) are bfloat16; x (M, K) signed bytes, x_scales and x_sums (G, group_stride), float32 and int32,
    are each group's scale and -128 times its sum: weights are stored with an offset (128, or 8), which that takes back.
    Groups 2i and 2i + 1 of x have the same scale: INT8 weights that share theirs too are multiplied by both but once.
    """
    tokens, stored = m.literal_value, kind.literal_value
    chains = max(1, 4 // tokens)  # so that one sum need not wait for the one before; whole numbers: the order is free
    group_bytes = GROUP * LANES // (2 if stored == INT4 else 1)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, w, scales, per, x, x_stride, x_scales, x_sums, group_stride, groups, out, out_stride, bias, add = args
        emit = Emitter(builder)
        rows = [emit.separate(emit.at(x, builder.mul(I64(m), x_stride))) for m in range(tokens)]
        wholes = [emit.variables(chains, INTS) for _ in rows]

        def add_group(index: Any, corner: Any) -> None:
            block, here = emit.at(w, index, group_bytes), [emit.at(row, index, GROUP) for row in rows]
            if stored == INT4:
                for (place, *_), total in zip(
                    wholes, _int4_group(emit, block, here, x_sums, corner, chains), strict=True
                ):
                    builder.store(total, place)
            else:
                _int8_group(emit, block, here, x_sums, corner, wholes)

        sums = scaled_sums(emit, wholes, groups, (scales, per), (x_scales, group_stride), stored == INT8, add_group)
        emit.finish(sums, out, out_stride, bias, add)
        return context.get_dummy_value()

    return types.void(m, kind, *_integers(13)), code


def scaled_sums(
    emit: Emitter,
    wholes: list[list[Any]],
    groups: Any,
    weights: tuple[Any, Any],
    activations: tuple[Any, Any],
    pairs: bool,
    add_group: Callable[[Any, Any], None],
) -> list[Any]:
    """Each token's 16 float32 sums over all groups; `add_group(index, corner)` adds one to the token's `wholes`.

    These are whole numbers, zero at first, of all chains together; they become floats by the scales of `weights` (where
    they lie, and groups to each) and of `activations` (where they lie, and those of each group). Two groups that share
    both are scaled together, if `pairs`.
    """
    builder, (scales, per), (x_scales, group_stride) = emit.builder, weights, activations
    sums = emit.variables(len(wholes), FLOATS)
    scale_place, left = cgutils.alloca_once_value(builder, scales), cgutils.alloca_once_value(builder, per)
    paired = builder.icmp_signed("==", builder.and_(per, I64(1)), I64(0)) if pairs else ir.Constant(ir.IntType(1), 0)
    with cgutils.for_range(builder, groups) as loop:
        corner = builder.mul(loop.index, group_stride)
        weight_scale = emit.lanes(builder.load(scale_place), BFLOAT16)
        emit.count_down(left, per, scale_place, 2 * LANES)
        add_group(loop.index, corner)
        first = builder.icmp_signed("==", builder.and_(loop.index, I64(1)), I64(0))
        more = builder.icmp_signed("<", builder.add(loop.index, I64(1)), groups)
        with builder.if_then(builder.not_(builder.and_(paired, builder.and_(first, more)))):
            for m, chains in enumerate(wholes):
                total = _sum(emit, [builder.load(place) for place in chains])
                scale = emit.spread(emit.load(emit.at(emit.at(x_scales, corner, 4), 4 * m), F32, 4))
                value = builder.fmul(builder.sitofp(total, FLOATS), scale)
                builder.store(emit.multiply_add(value, weight_scale, builder.load(sums[m])), sums[m])
            for place in itertools.chain(*wholes):
                builder.store(ir.Constant(INTS, None), place)
    return [builder.load(place) for place in sums]


def _start(emit: Emitter, x_sums: Any, corner: Any, m: int, offset: int) -> Any:
    """-offset * (sum of the group's activations), in every lane; x_sums hold it for an offset of 128."""
    total = emit.spread(emit.load(emit.at(emit.at(x_sums, corner, 4), 4 * m), I32, 4))
    if offset == 128:
        return total
    return emit.builder.ashr(total, ir.Constant(INTS, [4] * LANES))  # 8 is 128 / 16


def _int8_group(emit: Emitter, block: Any, rows: list[Any], x_sums: Any, corner: Any, wholes: list[list[Any]]) -> None:
    """Add one group to the 16 sums of each token: 16 loads of 64 bytes."""
    totals = [[emit.builder.load(place) for place in places] for places in wholes]
    signed = features.by_avx2()
    dot = emit.dot_signed if signed else emit.dot
    for m, chains in enumerate([] if signed else totals):
        chains[0] = emit.builder.add(chains[0], _start(emit, x_sums, corner, m, 128))
    for step in range(GROUP // 4):
        weights = emit.load(emit.at(block, 64 * step), BYTES64, 1)
        for m, row in enumerate(rows):
            four = emit.load(emit.at(row, 4 * step), I32, 4)
            chain = step % len(totals[m])
            totals[m][chain] = dot(totals[m][chain], weights, four)
        if step % 4 == 3:
            emit.fence()
    for chains, places in zip(totals, wholes, strict=True):
        for total, place in zip(chains, places, strict=True):
            emit.builder.store(total, place)


def _int4_group(emit: Emitter, block: Any, rows: list[Any], x_sums: Any, corner: Any, chains: int) -> list[Any]:
    """The same with two weights a byte; the high ones count 16 times, which a shift of their exact sum takes back.

    With AVX2 they are shifted at once: its sums of pairs hold no more.
    """
    builder, zero = emit.builder, ir.Constant(INTS, None)
    small = features.by_avx2()
    dot = emit.dot_small if small else emit.dot
    low_bits, high_bits = (ir.Constant(BYTES64, [mask] * 64) for mask in (0x0F, 0xF0))
    lows = [[_start(emit, x_sums, corner, m, 8), *[zero] * (chains - 1)] for m in range(len(rows))]
    highs = [[zero] * chains for _ in rows]
    for step in range(GROUP // 8):
        both = emit.load(emit.at(block, 64 * step), BYTES64, 1)
        low = builder.and_(both, low_bits)
        high = builder.lshr(both, ir.Constant(BYTES64, [4] * 64)) if small else builder.and_(both, high_bits)
        for m, row in enumerate(rows):
            chain = step % chains
            lows[m][chain] = dot(lows[m][chain], low, emit.load(emit.at(row, 4 * step), I32, 4))
            highs[m][chain] = dot(highs[m][chain], high, emit.load(emit.at(row, GROUP // 2 + 4 * step), I32, 4))
        if step % 4 == 3:
            emit.fence()
    shift = ir.Constant(INTS, [0 if small else 4] * LANES)
    return [
        builder.add(_sum(emit, low), builder.ashr(_sum(emit, high), shift))
        for low, high in zip(lows, highs, strict=True)
    ]


def _sum(emit: Emitter, parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = emit.builder.add(total, part)
    return total
