"""What choosing a token needs of a whole row of logits: the maxima of blocks, and the log of the sum of exponentials.

V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt2.kernels.cache import kernel
from gpt2.kernels.formats import of_rank, rank
from gpt2.kernels.scalars import quick_exp

f32, i32 = np.float32, np.int32
BLOCK = 64  # logits under one maximum


@kernel
def exp(x: Any) -> Any:
    """quick_exp of x <= 0, but 0 below -87."""
    return f32(0.0) if x < f32(-87.0) else quick_exp(x)


@kernel
def find_peaks(row: Any, peaks: Any) -> Any:
    """The maximum of each block of row (V,), and of all. A NaN of the usual sign is larger than any number."""
    top = i32(-0x80000000)
    for block in range(peaks.shape[0]):
        part = row[block * BLOCK : (block + 1) * BLOCK]
        peak = i32(-0x80000000)
        for j in range(part.shape[0]):
            peak = max(peak, rank(part[j]))
        peaks[block] = of_rank(peak)
        top = max(top, peak)
    return of_rank(top)


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
