"""Single words: their bits, their addresses, and what several threads do with one."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels.lanes import F32, I8, I32, I64


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
