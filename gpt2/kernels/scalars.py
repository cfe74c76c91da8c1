"""What kernels are made of: arrays at addresses, bits of floats, exp, maxima."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gpt2.kernels.cache import kernel
from gpt2.kernels.formats import of_rank, rank
from gpt2.kernels.words import as_bits, as_float, pointer

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
def shorts(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int16)


@kernel
def signed(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int8)


@kernel
def unsigned(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.uint8)


@kernel
def largest(x: Any, count: Any) -> Any:
    """The largest absolute number of x[:count]. As whole numbers, in whose maximum no NaN hinders vectors."""
    top = np.int32(0)
    for i in range(count):
        top = max(top, np.int32(as_bits(x[i]) & np.uint32(0x7FFFFFFF)))
    return as_float(np.uint32(top))


@kernel
def highest(x: Any, count: Any) -> Any:
    """The maximum of x[:count], stored numbers, count at least 1. A NaN of the usual sign is larger than any number."""
    top = rank(x[0])
    for i in range(1, count):
        top = max(top, rank(x[i]))
    return of_rank(top)


@kernel
def exp(x: Any) -> Any:
    """exp to about 2e-7 relative, by arithmetic that LLVM turns into vectors.

    The argument is cut to [-87, 88]; NaN stays NaN.
    """
    whole, rest = _split(x)
    return _power(whole, rest, f32(1.5252734e-5) * rest + f32(1.5403530e-4))


@kernel
def quick_exp(x: Any) -> Any:
    """`exp` to about 2e-6 relative."""
    whole, rest = _split(x)
    return _power(whole, rest, f32(1.5403530e-4))


@kernel
def _split(x: Any) -> Any:
    """exp(x) as a power of two: its exponent's whole part and the rest, at most a half."""
    z = min(max(x, f32(-87.0)), f32(88.0)) * f32(1.4426950408889634)
    whole = np.floor(z + f32(0.5))
    return whole, z - whole


@kernel
def _power(whole: Any, rest: Any, p: Any) -> Any:
    """2^(whole + rest), of a polynomial whose leading coefficients make p."""
    p = p * rest + f32(1.3333558e-3)
    p = p * rest + f32(9.6181291e-3)
    p = p * rest + f32(5.5504109e-2)
    p = p * rest + f32(2.4022651e-1)
    p = p * rest + f32(6.9314718e-1)
    p = p * rest + f32(1.0)
    return p * as_float(np.uint32((np.int32(whole) + np.int32(127)) << np.int32(23)))


@kernel
def share(count: Any, worker: Any, workers: Any) -> Any:
    """The part of range(count) that is this worker's."""
    return count * worker // workers, count * (worker + 1) // workers
