"""Registers of 16 lanes: the types of LLVM that fill them, and the words in which kernels' innermost loops are told."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from gpt2.kernels import features

LANES = 16
GROUP = 64  # columns that share an activation's scale
FLOAT32, BFLOAT16, INT8, INT4 = 0, 1, 2, 3  # kinds of packed matrices; INT8 in `tile_float` is a signed byte a lane

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

llvm.initialize_native_asmparser()  # for `fence`, and for `pause` in words.py
F32 = ir.FloatType()
BYTES64, SHORTS64 = ir.VectorType(I8, 64), ir.VectorType(I16, 64)
INTS, SHORTS, BYTES, FLOATS = (ir.VectorType(kind, LANES) for kind in (I32, I16, I8, F32))


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


HALVES32 = ir.VectorType(BFloat(), 32)
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
        if features.HAS_VNNI:
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

    def dot_shorts(self, total: Any, weights: Any, two: Any) -> Any:
        """total (16 ints) + for each lane its two weights of 16 bits (an int) times two others (one int); with AVX2."""
        none, two = ir.Constant(INTS, ir.Undefined), self.spread(two)
        sums = []
        for start in (0, 8):
            places = ir.Constant(INTS8, list(range(start, start + 8)))
            halves = [self.builder.shuffle_vector(value, none, places) for value in (weights, two)]
            operands = [self.builder.bitcast(half, SHORTS16) for half in halves]
            sums.append(self._call("llvm.x86.avx2.pmadd.wd", INTS8, *operands))
        return self.builder.add(total, self.builder.shuffle_vector(*sums, ir.Constant(INTS, list(range(LANES)))))

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
        if features.HAS_BF16:
            kind = ir.FunctionType(FLOATS, [FLOATS, HALVES32, HALVES32])
            function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
            operands = [self.builder.bitcast(value, HALVES32) for value in (weights, self.spread(two))]
            return self.builder.call(function, [total, *operands])
        return self.dots_halves([total], weights, [two])[0]

    def dots_halves(self, totals: list[Any], weights: Any, twos: list[Any]) -> list[Any]:
        """`dot_halves` of the same weights for several totals."""
        pairs = list(zip(totals, twos, strict=True))
        if features.HAS_BF16:
            return [self.dot_halves(total, weights, two) for total, two in pairs]
        for part in (self.high, self.low):  # one after the other for all: fewer registers at a time
            own = part(weights)
            pairs = [(self.multiply_add(part(self.spread(two)), own, total), two) for total, two in pairs]
        return [total for total, _ in pairs]

    def low(self, pairs: Any) -> Any:
        """The first bfloat16 of each pair as float32."""
        return self.builder.bitcast(self.builder.shl(pairs, ir.Constant(INTS, [16] * LANES)), FLOATS)

    def high(self, pairs: Any) -> Any:
        """The second."""
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
