"""What choosing a token needs of a whole row of logits: the maxima of blocks, and the log of the sum of exponentials.

V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt2.kernels.cache import kernel
from gpt2.kernels.vectors import as_bits, as_float

f32, i32 = np.float32, np.int32
BLOCK = 64  # logits under one maximum


@kernel
def ordered(bits: Any) -> Any:
    """A float's bits -> a whole number in the same order (and back): maxima of whole numbers become vectors."""
    return bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))


@kernel
def exp(x: Any) -> Any:
    """exp of x <= 0 as gpt2.kernels.rowwise has it; 0 below -87, NaN stays NaN."""
    z = x * f32(1.4426950408889634)
    n = np.floor(z + f32(0.5))
    r = z - n
    p = f32(1.5403530e-4)
    p = p * r + f32(1.3333558e-3)
    p = p * r + f32(9.6181291e-3)
    p = p * r + f32(5.5504109e-2)
    p = p * r + f32(2.4022651e-1)
    p = p * r + f32(6.9314718e-1)
    p = p * r + f32(1.0)
    power = as_float(np.uint32((i32(max(n, f32(-126.0))) + i32(127)) << i32(23)))
    return f32(0.0) if x < f32(-87.0) else p * power


@kernel
def find_peaks(row: Any, peaks: Any) -> Any:
    """The maximum of each block of row (V,), and of all. A NaN of the usual sign is larger than any number."""
    top = i32(-0x80000000)
    for block in range(peaks.shape[0]):
        part = row[block * BLOCK : (block + 1) * BLOCK]
        peak = i32(-0x80000000)
        for j in range(part.shape[0]):
            peak = max(peak, ordered(i32(as_bits(part[j]))))
        peaks[block] = as_float(np.uint32(ordered(peak)))
        top = max(top, peak)
    return as_float(np.uint32(ordered(top)))


@kernel
def add_up(row: Any, top: Any, scale: Any, sums: Any) -> Any:
    """sum exp((row - top) * scale), in float64 over the blocks; what each block adds to it in `sums`."""
    total = 0.0
    for block in range(sums.shape[0]):
        part = row[block * BLOCK : (block + 1) * BLOCK]
        inside = f32(0.0)
        for j in range(part.shape[0]):
            inside += exp((part[j] - top) * scale)
        sums[block] = inside
        total += inside
    return total


@kernel
def survey(row: Any, peaks: Any, sums: Any) -> Any:
    """Fill `peaks` (and `sums`, both of V / BLOCK); the largest logit and the log of the sum of exponentials (nats)."""
    top = find_peaks(row, peaks)
    return top, math.log(add_up(row, top, f32(1.0), sums)) + top


@kernel
def survey_rows(logits: Any, vocab_size: Any, peaks: Any, tops: Any, normalisers: Any) -> None:
    """`survey` of each row of logits (R, at least V) -> peaks (R, V / BLOCK), tops (R,), normalisers (R,) float64."""
    sums = np.empty(peaks.shape[1], np.float64)
    for i in range(logits.shape[0]):
        tops[i], normalisers[i] = survey(logits[i, :vocab_size], peaks[i], sums)
