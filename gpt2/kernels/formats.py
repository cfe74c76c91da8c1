"""Numbers as they are stored: float32, or bfloat16, which numba lacks and sees as uint16; all arithmetic is float32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpt2.kernels.lanes import F32, I16, I32


@intrinsic
def widen(typingctx: Any, number: Any) -> Any:
    """A stored number as float32, exact: float32 as it is, or bfloat16's bits."""
    if number == types.float32:
        return number(number), lambda context, builder, signature, args: args[0]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _widened(builder, args[0])

    return types.float32(types.uint16), code


@intrinsic
def narrow(typingctx: Any, value: Any) -> Any:
    """float32 -> bfloat16's bits, to the nearest, ties to even. NaNs of arithmetic are quiet ones and stay NaN."""
    return types.uint16(types.float32), lambda context, builder, signature, args: _narrowed(builder, args[0])


@intrinsic
def fit(typingctx: Any, value: Any, row: Any) -> Any:
    """A float32 as it is stored in `row`, an array: as it is, or by `narrow`."""
    if row.dtype == types.float32:
        return types.float32(types.float32, row), lambda context, builder, signature, args: args[0]
    return types.uint16(types.float32, row), lambda context, builder, signature, args: _narrowed(builder, args[0])


@intrinsic
def rank(typingctx: Any, number: Any) -> Any:
    """A stored number's bits as a whole number of the same order: a maximum of these becomes vectors."""
    whole = types.int32 if number == types.float32 else types.int16

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _flipped(builder, builder.bitcast(args[0], I32) if number == types.float32 else args[0])

    return whole(number), code


@intrinsic
def of_rank(typingctx: Any, whole: Any) -> Any:
    """The float32 of a `rank`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _flipped(builder, args[0])
        return builder.bitcast(bits, F32) if whole == types.int32 else _widened(builder, bits)

    return types.float32(whole), code


def _widened(builder: Any, half: ir.Value) -> ir.Value:
    return builder.bitcast(builder.shl(builder.zext(half, I32), I32(16)), F32)


def _narrowed(builder: Any, value: ir.Value) -> ir.Value:
    bits = builder.bitcast(value, I32)
    tie = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    return builder.trunc(builder.lshr(builder.add(bits, builder.add(tie, I32(0x7FFF))), I32(16)), I16)


def _flipped(builder: Any, bits: ir.Value) -> ir.Value:
    """Below zero a float's size grows as its bits do: all but the sign turn round. Its own inverse."""
    kind = bits.type
    sign = builder.ashr(bits, kind(kind.width - 1))
    return builder.xor(bits, builder.and_(sign, kind(2 ** (kind.width - 1) - 1)))
