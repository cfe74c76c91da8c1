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
import os
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
GROUP = 64  # columns that share an activation's scale
FLOAT32, BFLOAT16, INT8, INT4 = 0, 1, 2, 3  # kinds of packed matrices; INT8 in `tile_float` is a signed byte a lane

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
BYTES64, SHORTS64 = ir.VectorType(I8, 64), ir.VectorType(I16, 64)
INTS, SHORTS, BYTES, FLOATS = (ir.VectorType(kind, LANES) for kind in (I32, I16, I8, F32))


llvm.initialize_native_asmparser()  # for `fence` and `pause`


def host_features() -> dict[str, bool]:
    """What this processor can do, in LLVM's names; empty where GPT2_VECTORS=plain asks for code that runs anywhere."""
    if os.environ.get("GPT2_VECTORS") == "plain" or os.environ.get("NUMBA_CPU_NAME"):
        return {}
    return dict(llvm.get_host_cpu_features())


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


HALVES32 = ir.VectorType(BFloat(), 32)
HAS_BF16 = all(host_features().get(name, False) for name in ("avx512f", "avx512bf16"))
HAS_VNNI = all(host_features().get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))
HAS_AVX2 = host_features().get("avx2", False)
HAS_AVX512 = host_features().get("avx512f", False)
BYTES32, SHORTS16, INTS8 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)  # AVX2's registers


class Emitter:
    """A few words for what the loops below do again and again."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def at(self, address: Any, offset: Any, size: int = 1) -> Any:
        """address + offset * size; an offset is a Python int or a value."""
        if isinstance(offset, int):
            return self.builder.add(address, I64(offset * size))
        return self.builder.add(address, self.builder.mul(offset, I64(size)))

    def load(self, address: Any, kind: Any, align: int) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=align)

    def spread(self, scalar: Any) -> Any:
        """One number in all 16 lanes."""
        wide = ir.VectorType(scalar.type, LANES)
        one = self.builder.insert_element(ir.Constant(wide, ir.Undefined), scalar, I32(0))
        return self.builder.shuffle_vector(one, ir.Constant(wide, ir.Undefined), ir.Constant(INTS, [0] * LANES))

    def lanes(self, address: Any, kind: int) -> Any:
        """16 float32 from 16 stored numbers of a kind."""
        if kind == FLOAT32:
            return self.load(address, FLOATS, 4)
        if kind == BFLOAT16:
            bits = self.builder.zext(self.load(address, SHORTS, 2), INTS)
            return self.builder.bitcast(self.builder.shl(bits, ir.Constant(INTS, [16] * LANES)), FLOATS)
        return self.builder.sitofp(self.builder.sext(self.load(address, BYTES, 1), INTS), FLOATS)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, fused where the processor does that."""
        name = "llvm.fmuladd.v16f32"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS]), name
        )
        return self.builder.call(function, [a, b, c])

    def dot(self, total: Any, weights: Any, four: Any) -> Any:
        """total (16 ints) + for each lane its four unsigned weights (64 bytes) times four signed ones (one int)."""
        if HAS_VNNI:
            old = llvm.llvm_version_info[0] < 22
            wide = INTS if old else BYTES64
            operands = [self.builder.bitcast(value, wide) for value in (weights, self.spread(four))]
            function = cgutils.get_or_insert_function(
                self.builder.module, ir.FunctionType(INTS, [INTS, wide, wide]), "llvm.x86.avx512.vpdpbusd.512"
            )
            return self.builder.call(function, [total, *operands])
        signed = self.builder.sext(self.builder.bitcast(self.spread(four), BYTES64), SHORTS64)
        products = self.builder.mul(self.builder.zext(weights, SHORTS64), signed)  # 255 * 128 fits 16 bits
        for place in range(4):
            index = ir.Constant(INTS, [4 * lane + place for lane in range(LANES)])
            part = self.builder.shuffle_vector(products, ir.Constant(SHORTS64, ir.Undefined), index)
            total = self.builder.add(total, self.builder.sext(part, INTS))
        return total

    def dot_signed(self, total: Any, weights: Any, four: Any) -> Any:
        """As `dot` with 128 taken from each weight, none of which is 0; with AVX2.

        There unsigned bytes are multiplied by signed ones in pairs whose sums must fit 16 bits: sizes by weights that
        have the sign of the product do.
        """
        four = self.builder.bitcast(self.spread(four), BYTES64)
        weights = self.builder.xor(weights, ir.Constant(BYTES64, [-128] * 64))
        size, sign = "llvm.abs.v32i8", "llvm.x86.avx2.psign.b"
        parts = []
        for one, other in zip(self._halves(four), self._halves(weights), strict=True):
            sizes = self._call(size, BYTES32, one, ir.Constant(ir.IntType(1), 0))
            parts.append((sizes, self._call(sign, BYTES32, other, one)))
        return self.builder.add(total, self._fours(parts))

    def dot_small(self, total: Any, weights: Any, four: Any) -> Any:
        """As `dot`, of weights that are below 128; with AVX2."""
        four = self.builder.bitcast(self.spread(four), BYTES64)
        parts = list(zip(self._halves(weights), self._halves(four), strict=True))
        return self.builder.add(total, self._fours(parts))

    def _fours(self, parts: list[tuple[Any, Any]]) -> Any:
        """16 ints, each the sum of four products of unsigned and signed bytes."""
        ones, sums = ir.Constant(SHORTS16, [1] * 16), []
        for unsigned, signed in parts:
            pairs = self._call("llvm.x86.avx2.pmadd.ub.sw", SHORTS16, unsigned, signed)
            sums.append(self._call("llvm.x86.avx2.pmadd.wd", INTS8, pairs, ones))
        return self.builder.shuffle_vector(*sums, ir.Constant(INTS, list(range(LANES))))

    def _halves(self, bytes_: Any) -> list[Any]:
        """64 bytes as twice 32."""
        none, kind = ir.Constant(BYTES64, ir.Undefined), ir.VectorType(I32, 32)
        places = [ir.Constant(kind, list(range(start, start + 32))) for start in (0, 32)]
        return [self.builder.shuffle_vector(bytes_, none, place) for place in places]

    def _call(self, name: str, result: Any, *operands: Any) -> Any:
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), operands)

    def dot_halves(self, total: Any, weights: Any, two: Any) -> Any:
        """total (16 float32) + for each lane its two bfloat16 weights (an int) times two others (one int)."""
        if HAS_BF16:
            kind = ir.FunctionType(FLOATS, [FLOATS, HALVES32, HALVES32])
            function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
            operands = [self.builder.bitcast(value, HALVES32) for value in (weights, self.spread(two))]
            return self.builder.call(function, [total, *operands])
        two = self.spread(two)
        for part in (self._high, self._low):
            total = self.multiply_add(part(two), part(weights), total)
        return total

    def _low(self, pairs: Any) -> Any:
        """The first bfloat16 of each pair as float32."""
        return self.builder.bitcast(self.builder.shl(pairs, ir.Constant(INTS, [16] * LANES)), FLOATS)

    def _high(self, pairs: Any) -> Any:
        return self.builder.bitcast(self.builder.and_(pairs, ir.Constant(INTS, [0xFFFF0000] * LANES)), FLOATS)

    def fence(self) -> None:
        """Keep the compiler from reordering loads over this point: it would break the memory's streams (half speed)."""
        self.builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True), [])

    def separate(self, address: Any) -> Any:
        """The same address, but the compiler no longer knows how it came about: it keeps a register for it.

        Else it makes each row's address from the one before it, over and over, and the sums wait for that.
        """
        return self.builder.call(ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0"), [address])

    def variables(self, count: int, kind: Any) -> list[Any]:
        """Registers that a loop carries, zero at first."""
        places = [cgutils.alloca_once(self.builder, kind) for _ in range(count)]
        for place in places:
            self.builder.store(ir.Constant(kind, None), place)
        return places

    def count_down(self, left: Any, start: Any, place: Any, step: int) -> None:
        """One less in `left`; at zero it begins again from `start` and the address in `place` moves on by `step`."""
        builder = self.builder
        count = builder.sub(builder.load(left), I64(1))
        over = builder.icmp_signed("==", count, I64(0))
        builder.store(builder.select(over, start, count), left)
        here = builder.load(place)
        builder.store(builder.select(over, builder.add(here, I64(step)), here), place)

    def finish(self, sums: list[Any], out: Any, out_stride: Any, bias: Any, add: Any) -> None:
        """out[m] = sums[m] + bias, or + out[m] too where `add` is not 0."""
        start = self.load(bias, FLOATS, 4)
        adding = self.builder.icmp_signed("!=", add, I64(0))
        for m, value in enumerate(sums):
            place = self.at(out, self.builder.mul(I64(m), out_stride), 4)
            value = self.builder.fadd(value, start)
            with self.builder.if_else(adding) as (then, otherwise):
                with then:
                    self.store(self.builder.fadd(value, self.load(place, FLOATS, 4)), place)
                with otherwise:
                    self.store(value, place)


def _integers(count: int) -> tuple[Any, ...]:
    return (types.int64,) * count


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
        with cgutils.for_range(builder, builder.udiv(columns, I64(unroll))) as loop:
            first = builder.mul(loop.index, I64(unroll))
            for k in range(unroll):
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
        with cgutils.for_range(builder, builder.udiv(pairs, I64(unroll))) as loop:
            first = builder.mul(loop.index, I64(unroll))
            for k in range(unroll):
                weights = emit.load(emit.at(emit.at(w, first, 64), 64 * k), INTS, 1)
                for m in range(tokens):
                    two = emit.load(emit.at(emit.at(rows[m], first, 4), 4 * k), I32, 1)
                    place = sums[k % 2][m]
                    builder.store(emit.dot_halves(builder.load(place), weights, two), place)
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
        sums = emit.variables(tokens, FLOATS)
        wholes = [emit.variables(chains, INTS) for _ in rows]  # of groups that share both scales
        scale_place, left = cgutils.alloca_once_value(builder, scales), cgutils.alloca_once_value(builder, per)
        paired = builder.icmp_signed("==", builder.and_(per, I64(1)), I64(0))
        with cgutils.for_range(builder, groups) as loop:
            block = emit.at(w, loop.index, group_bytes)
            here = [emit.at(row, loop.index, GROUP) for row in rows]
            corner = builder.mul(loop.index, group_stride)
            weight_scale = emit.lanes(builder.load(scale_place), BFLOAT16)
            emit.count_down(left, per, scale_place, 2 * LANES)

            def scale(totals: list[Any]) -> None:
                for m, total in enumerate(totals):
                    scale = emit.spread(emit.load(emit.at(emit.at(x_scales, corner, 4), 4 * m), F32, 4))
                    value = builder.fmul(builder.sitofp(total, FLOATS), scale)
                    builder.store(emit.multiply_add(value, weight_scale, builder.load(sums[m])), sums[m])

            if stored == INT4:
                scale(_int4_group(emit, block, here, x_sums, corner, chains))
            else:
                _int8_group(emit, block, here, x_sums, corner, wholes)
                first = builder.icmp_signed("==", builder.and_(loop.index, I64(1)), I64(0))
                more = builder.icmp_signed("<", builder.add(loop.index, I64(1)), groups)
                with builder.if_then(builder.not_(builder.and_(paired, builder.and_(first, more)))):
                    scale([_sum(emit, [builder.load(place) for place in places]) for places in wholes])
                    for place in itertools.chain(*wholes):
                        builder.store(ir.Constant(INTS, None), place)
        emit.finish([builder.load(place) for place in sums], out, out_stride, bias, add)
        return context.get_dummy_value()

    return types.void(m, kind, *_integers(13)), code


def by_avx2() -> bool:
    """Whether bytes are multiplied by AVX2's own products, for want of VNNI's."""
    return HAS_AVX2 and not HAS_VNNI


def by_floats() -> bool:
    """Whether float32 is trained in by kernels of our own: made for AVX2, where there is nothing faster."""
    return HAS_AVX2 and not HAS_AVX512


def _start(emit: Emitter, x_sums: Any, corner: Any, m: int, offset: int) -> Any:
    """-offset * (sum of the group's activations), in every lane; x_sums hold it for an offset of 128."""
    total = emit.spread(emit.load(emit.at(emit.at(x_sums, corner, 4), 4 * m), I32, 4))
    if offset == 128:
        return total
    return emit.builder.ashr(total, ir.Constant(INTS, [4] * LANES))  # 8 is 128 / 16


def _int8_group(emit: Emitter, block: Any, rows: list[Any], x_sums: Any, corner: Any, wholes: list[list[Any]]) -> None:
    """Add one group to the 16 sums of each token: 16 loads of 64 bytes."""
    totals = [[emit.builder.load(place) for place in places] for places in wholes]
    signed = by_avx2()
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
    small = by_avx2()
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


@intrinsic
def prefetch(typingctx: Any, address: Any, count: Any) -> Any:
    """Ask for `count` cache lines from an address on, without waiting for them."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range(builder, args[1]) as loop:
            line = builder.add(args[0], builder.mul(loop.index, I64(64)))
            builder.call(function, [builder.inttoptr(line, I8.as_pointer()), I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An address as carray takes it."""
    return types.voidptr(types.int64), lambda ctx, b, sig, args: b.inttoptr(args[0], cgutils.voidptr_t)


@intrinsic
def as_float(typingctx: Any, bits: Any) -> Any:
    """The float32 that these 32 bits are."""
    return types.float32(types.uint32), lambda ctx, b, sig, args: b.bitcast(args[0], F32)


@intrinsic
def as_bits(typingctx: Any, value: Any) -> Any:
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda ctx, b, sig, args: b.bitcast(args[0], I32)


def _atomic(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the 64-bit number at an address; what it was before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _atomic(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The 64-bit number at an address, with all that was written before it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_atomic(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), code


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write a 64-bit number, after all that was written before it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _atomic(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this is a waiting loop."""
    word = "pause" if llvm.get_process_triple().startswith(("x86_64", "i686", "amd64")) else ""
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        word = "yield"

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), word, "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), code
