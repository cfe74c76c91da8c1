"""The innermost loops of products.py in vector code: a tile of a product, and squares turned on their diagonal.

Addresses are plain integers; whoever calls answers for their being right.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels.lanes import BFLOAT16, FLOATS, I32, I64, INTS, LANES, SHORTS, BFloat, Emitter

TALL, WIDE = 6, 4  # a tile: rows, and vectors of 16 columns
COLUMNS = WIDE * LANES


def prefetch(builder: Any, address: Any) -> None:
    """Ask for the line of memory at an address, which may be anywhere."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, byte), I32(0), I32(3), I32(1)])


@intrinsic
def fetch(typingctx: Any, address: Any) -> Any:
    """`prefetch`, for kernels: rows far apart are no stream that the processor would guess."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), code


def rounded(builder: Any, value: Any) -> Any:
    """16 float32 as bfloat16, ties to even."""
    kind = ir.FunctionType(ir.VectorType(BFloat(), LANES), [FLOATS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
    return builder.bitcast(builder.call(function, [value]), SHORTS)


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any, tall: Any, a: Any, a_row: Any, pairs: Any, b: Any, sums: Any, more: Any, out: Any, out_row: Any,
    bias: Any, add: Any,
) -> Any:  # fmt: skip
    """a (tall, pairs) @ b (pairs, COLUMNS), and where `more` is not 0 sums (tall, COLUMNS), float32.

    Into sums; or if `out` is not 0 there as bfloat16, with bias (COLUMNS, float32), added to what it holds if `add` is
    not 0. Addresses and steps in bytes from row to row; b and sums are contiguous.
    """
    height = tall.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, a, a_row, pairs, b, sums, more, out, out_row, bias, add = args
        emit = Emitter(builder)
        totals = [emit.variables(WIDE, FLOATS) for _ in range(height)]
        places = [[emit.at(sums, 4 * COLUMNS * m + 4 * LANES * n) for n in range(WIDE)] for m in range(height)]
        with builder.if_then(builder.icmp_signed("!=", more, I64(0))):
            for m, n in itertools.product(range(height), range(WIDE)):
                builder.store(emit.load(places[m][n], FLOATS, 4), totals[m][n])
        finish = builder.icmp_signed("!=", out, I64(0))
        outs = [builder.add(out, builder.mul(I64(m), out_row)) for m in range(height)]
        with builder.if_then(finish):
            for place in outs:
                prefetch(builder, place)
                prefetch(builder, emit.at(place, 64))
        add_products(builder, height, (a, a_row, pairs, b), totals)
        with builder.if_else(finish) as (then, otherwise):
            with then:
                put(builder, totals, outs, bias, add)
            with otherwise:
                for m, n in itertools.product(range(height), range(WIDE)):
                    emit.store(builder.load(totals[m][n]), places[m][n])
        return context.get_dummy_value()

    return types.void(tall, *(types.int64,) * 10), code


def add_products(builder: Any, height: int, operands: tuple[Any, ...], totals: list[Any]) -> None:
    """The tile's loop: totals += a @ b, while the lines of a's next rows are asked for."""
    a, a_row, pairs, b = operands
    emit = Emitter(builder)
    rows = [emit.separate(emit.at(a, builder.mul(I64(m), a_row))) for m in range(height)]

    def add_pair(index: Any) -> None:
        right = emit.at(b, index, 4 * COLUMNS)
        vectors = [emit.load(emit.at(right, 4 * LANES * n), INTS, 4) for n in range(WIDE)]
        for m in range(height):
            two = emit.load(emit.at(rows[m], index, 4), I32, 2)
            for n in range(WIDE):
                builder.store(emit.dot_halves(builder.load(totals[m][n]), vectors[n], two), totals[m][n])

    lines, below = builder.udiv(pairs, I64(LANES)), builder.mul(I64(height), a_row)
    with cgutils.for_range(builder, lines) as line:
        first = builder.mul(line.index, I64(LANES))
        for row in rows:  # the same numbers of the tile below: they come from afar
            prefetch(builder, emit.at(builder.add(row, below), first, 4))
        with cgutils.for_range(builder, I64(LANES)) as loop:
            add_pair(builder.add(first, loop.index))
    done = builder.mul(lines, I64(LANES))
    with cgutils.for_range(builder, builder.sub(pairs, done)) as loop:
        add_pair(builder.add(done, loop.index))


def put(builder: Any, totals: list[Any], outs: list[Any], bias: Any, add: Any) -> None:
    """The tile's end: its rows, with bias, rounded to where they belong."""
    emit = Emitter(builder)
    shifts = [emit.load(emit.at(bias, 4 * LANES * n), FLOATS, 4) for n in range(WIDE)]
    for row, out in zip(totals, outs, strict=True):
        for n, total in enumerate(row):
            builder.store(builder.fadd(builder.load(total), shifts[n]), total)
        with builder.if_then(builder.icmp_signed("!=", add, I64(0))):
            for n, total in enumerate(row):
                held = emit.lanes(emit.at(out, 2 * LANES * n), BFLOAT16)
                builder.store(builder.fadd(builder.load(total), held), total)
        for n, total in enumerate(row):
            emit.store(rounded(builder, builder.load(total)), emit.at(out, 2 * LANES * n), 2)


def turned_words(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 words of 32 bits, rows become columns: ever smaller squares beside the diagonal are swapped."""
    rows = list(rows)
    for half in (8, 4, 2, 1):
        low = [LANES + lane - half if lane & half else lane for lane in range(LANES)]
        high = [LANES + lane if lane & half else lane + half for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & half):
            pair = rows[i], rows[i + half]
            for place, mask in ((i, low), (i + half, high)):
                rows[place] = builder.shuffle_vector(*pair, ir.Constant(INTS, mask))
    return rows


@intrinsic
def turn(typingctx: Any, source: Any, source_step: Any, out: Any, out_step: Any) -> Any:
    """out = source turned: 16 x 16 words of 32 bits; addresses, and steps from row to row in bytes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, out, out_step = args
        emit = Emitter(builder)
        rows = [emit.load(emit.at(source, builder.mul(I64(i), source_step)), INTS, 2) for i in range(LANES)]
        for i, row in enumerate(turned_words(builder, rows)):
            emit.store(row, emit.at(out, builder.mul(I64(i), out_step)), 2)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), code


@intrinsic
def put_square(typingctx: Any, sums: Any, out: Any, out_row: Any, add: Any) -> Any:
    """out (16, 16) bfloat16 = sums turned, of rows of COLUMNS float32; added to what it holds if `add` is not 0."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, out, out_row, add = args
        emit, values = Emitter(builder), Emitter(builder).variables(LANES, FLOATS)
        rows = [emit.load(emit.at(sums, 4 * COLUMNS * i), INTS, 4) for i in range(LANES)]
        places = [builder.add(out, builder.mul(I64(i), out_row)) for i in range(LANES)]
        for value, row in zip(values, turned_words(builder, rows), strict=True):
            builder.store(builder.bitcast(row, FLOATS), value)
        with builder.if_then(builder.icmp_signed("!=", add, I64(0))):
            for value, place in zip(values, places, strict=True):
                builder.store(builder.fadd(builder.load(value), emit.lanes(place, BFLOAT16)), value)
        for value, place in zip(values, places, strict=True):
            emit.store(rounded(builder, builder.load(value)), place, 2)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), code


@intrinsic
def turn_halves(typingctx: Any, source: Any, source_step: Any, out: Any, out_step: Any) -> Any:
    """out (32, 16) = source (16, 32) turned, numbers of 16 bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, out, out_step = args
        emit, shift = Emitter(builder), ir.Constant(INTS, [16] * LANES)
        rows = [emit.load(emit.at(source, builder.mul(I64(i), source_step)), INTS, 2) for i in range(LANES)]
        for i, row in enumerate(turned_words(builder, rows)):
            for half, words in enumerate((row, builder.lshr(row, shift))):
                place = emit.at(out, builder.mul(I64(2 * i + half), out_step))
                emit.store(builder.trunc(words, SHORTS), place, 2)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), code
