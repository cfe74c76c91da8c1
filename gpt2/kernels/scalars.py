"""What all writing kernels are made of: arrays at addresses, bits of floats, exp, maxima."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gpt2.kernels.cache import kernel
from gpt2.kernels.vectors import as_bits, as_float, pointer

f32 = np.float32


@kernel
def floats(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.float32)


@kernel
def words(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int64)


@kernel
def ints(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int32)


@kernel
def halves(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.uint16)


@kernel
def signed(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int8)


@kernel
def unsigned(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.uint8)


@kernel
def widen(half: Any) -> Any:
    """bfloat16 bits -> float32, exact."""
    return as_float(np.uint32(np.uint32(half) << np.uint32(16)))


@kernel
def narrow(value: Any) -> Any:
    """float32 -> bfloat16 bits, to the nearest, ties to even."""
    bits = as_bits(f32(value))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@kernel
def largest(x: Any, count: Any) -> Any:
    """The largest absolute number of x[:count]. As whole numbers, in whose maximum no NaN hinders vectors."""
    top = np.int32(0)
    for i in range(count):
        top = max(top, np.int32(as_bits(x[i]) & np.uint32(0x7FFFFFFF)))
    return as_float(np.uint32(top))


@kernel
def highest(x: Any, count: Any) -> Any:
    """The maximum of x[:count], likewise: a float's bits are in order, but for negative ones, whose lower bits turn."""
    top = np.int32(-0x80000000)
    for i in range(count):
        bits = np.int32(as_bits(x[i]))
        top = max(top, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return as_float(np.uint32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@kernel
def exp(x: Any) -> Any:
    """exp to about 2e-7 relative: a power of two times a polynomial, arithmetic that LLVM turns into vectors."""
    z = min(max(x, f32(-87.0)), f32(88.0)) * f32(1.4426950408889634)
    n = np.floor(z + f32(0.5))
    r = z - n
    p = f32(1.5252734e-5)
    p = p * r + f32(1.5403530e-4)
    p = p * r + f32(1.3333558e-3)
    p = p * r + f32(9.6181291e-3)
    p = p * r + f32(5.5504109e-2)
    p = p * r + f32(2.4022651e-1)
    p = p * r + f32(6.9314718e-1)
    p = p * r + f32(1.0)
    return p * as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@kernel
def share(count: Any, worker: Any, workers: Any) -> Any:
    """The part of range(count) that is this worker's."""
    return count * worker // workers, count * (worker + 1) // workers
