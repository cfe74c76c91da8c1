"""The innermost loops of products_float.py and flash_float.py in vector code: tiles of products in float32.

Made for AVX2's sixteen registers of eight numbers: twelve hold a tile's sums, so that no multiplication waits for the
one before it. Addresses are plain integers; whoever calls answers for their being right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels.lanes import F32, FLOATS, I32, I64, Emitter
from gpt2.kernels.tiles import prefetch

TALL = 6  # rows of a tile, which is LANES columns wide
STRIP = 8  # numbers from one column of a packed strip of TALL rows to the next: what a register holds
UNROLL = 4
EIGHT = ir.VectorType(F32, STRIP)


@intrinsic(prefer_literal=True)
def tile(typingctx: Any, tall: Any, a: Any, a_row: Any, a_column: Any, depth: Any, b: Any, b_row: Any, out: Any,
         out_row: Any, start: Any, add: Any) -> Any:  # fmt: skip
    """out (tall, LANES) = start (LANES) + a (tall, depth) @ b (depth, LANES), and what it holds if `add` is not 0.

    Addresses, and steps in bytes: of a's rows and columns, of b's rows, of out's rows.
    """
    height = tall.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, a, a_row, a_column, depth, b, b_row, *result = args
        emit = Emitter(builder)
        rows = [emit.separate(builder.add(a, builder.mul(I64(m), a_row))) for m in range(height)]

        def operands(index: Any) -> tuple[Any, list[Any]]:
            places = [builder.add(row, builder.mul(index, a_column)) for row in rows]
            return builder.add(b, builder.mul(index, b_row)), places

        sums_of_products(emit, height, depth, operands, result)
        return context.get_dummy_value()

    return types.void(tall, *(types.int64,) * 10), code


@intrinsic(prefer_literal=True)
def turned_tile(typingctx: Any, tall: Any, a: Any, a_row: Any, depth: Any, b: Any, b_row: Any, out: Any, out_row: Any,
                start: Any, add: Any) -> Any:  # fmt: skip
    """`tile` of a turned: (depth, tall), its rows a_row apart, the numbers of each side by side."""
    height = tall.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, a, a_row, depth, b, b_row, *result = args
        emit = Emitter(builder)

        def operands(index: Any) -> tuple[Any, list[Any]]:
            left = builder.add(a, builder.mul(index, a_row))
            return builder.add(b, builder.mul(index, b_row)), [emit.at(left, 4 * m) for m in range(height)]

        sums_of_products(emit, height, depth, operands, result)
        return context.get_dummy_value()

    return types.void(tall, *(types.int64,) * 9), code


def sums_of_products(
    emit: Emitter, height: int, depth: Any, operands: Callable[[Any], tuple[Any, list[Any]]], result: list[Any]
) -> None:
    """A tile: `operands` has the addresses of b's row and of each of a's numbers for a place in the sums."""
    builder, (out, out_row, start, add) = emit.builder, result
    sums, first = emit.variables(height, FLOATS), emit.load(start, FLOATS, 4)
    places = [builder.add(out, builder.mul(I64(m), out_row)) for m in range(height)]
    for total, place in zip(sums, places, strict=True):
        builder.store(first, total)
        prefetch(builder, place)

    def add_products(index: Any) -> None:
        right, left = operands(index)
        row = emit.load(right, FLOATS, 4)
        for place, total in zip(left, sums, strict=True):
            number = emit.spread(emit.load(place, F32, 4))
            builder.store(emit.multiply_add(number, row, builder.load(total)), total)

    in_steps(builder, depth, add_products)
    with builder.if_then(builder.icmp_signed("!=", add, I64(0))):
        for total, place in zip(sums, places, strict=True):
            builder.store(builder.fadd(builder.load(total), emit.load(place, FLOATS, 4)), total)
    for total, place in zip(sums, places, strict=True):
        emit.store(builder.load(total), place)


def in_steps(builder: Any, count: Any, body: Any) -> None:
    """body(index) for each of `count`, UNROLL of them between two jumps."""
    whole = builder.udiv(count, I64(UNROLL))
    with cgutils.for_range(builder, whole) as loop:
        first = builder.mul(loop.index, I64(UNROLL))
        for step in range(UNROLL):
            body(builder.add(first, I64(step)))
    done = builder.mul(whole, I64(UNROLL))
    with cgutils.for_range(builder, builder.sub(count, done)) as loop:
        body(builder.add(done, loop.index))


@intrinsic(prefer_literal=True)
def move(typingctx: Any, count: Any, source: Any, out: Any) -> Any:
    """`count` float32 (a constant) from one address to another."""
    kind = ir.VectorType(F32, count.literal_value)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        emit.store(emit.load(args[1], kind, 4), args[2])
        return context.get_dummy_value()

    return types.void(count, types.int64, types.int64), code


@intrinsic
def turn_eight(typingctx: Any, source: Any, source_row: Any, rows: Any, out: Any) -> Any:
    """out (STRIP, STRIP), contiguous = source's `rows` rows of STRIP float32 turned, and any numbers for missing rows.

    Rows at and past `rows` are read from the last one that is there.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, rows, out = args
        emit = Emitter(builder)
        last = builder.sub(rows, I64(1))
        vectors = []
        for i in range(STRIP):
            row = builder.select(builder.icmp_signed("<", I64(i), rows), I64(i), last)
            vectors.append(emit.load(builder.add(source, builder.mul(row, source_row)), EIGHT, 4))
        for half in (4, 2, 1):
            low = [STRIP + lane - half if lane & half else lane for lane in range(STRIP)]
            high = [STRIP + lane if lane & half else lane + half for lane in range(STRIP)]
            for i in (i for i in range(STRIP) if not i & half):
                pair = vectors[i], vectors[i + half]
                for place, mask in ((i, low), (i + half, high)):
                    places = ir.Constant(ir.VectorType(I32, STRIP), mask)
                    vectors[place] = builder.shuffle_vector(*pair, places)
        for i, vector in enumerate(vectors):
            emit.store(vector, emit.at(out, 4 * STRIP * i))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), code
