"""numba kernels that spare memory: what forward does not keep, backward makes again in the pass that needs it anyway.

As in rowwise.py numbers are float32 or bfloat16 and computed with in float32; one thread owns a block of rows.

    N rows (tokens)  C n_embd  F n_inner
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from gpt2.kernels.cache import once, parallel
from gpt2.kernels.formats import fit, widen
from gpt2.kernels.rowwise import GELU_A, GELU_B, ONE, f32
from gpt2.kernels.scalars import quick_exp as exp

BLOCK = 64  # rows of one thread's turn, and of one partial sum over rows


@once
def normalise(row: Any, eps: Any, out: Any) -> Any:
    """out = (row - mean) / sqrt(variance + eps) in float32; returns 1 / sqrt(variance + eps)."""
    count, total, squares = row.shape[0], f32(0.0), f32(0.0)
    for j in range(count):
        out[j] = widen(row[j])
        total += out[j]
    mean = total / f32(count)
    for j in range(count):
        out[j] -= mean
        squares += out[j] * out[j]
    inverse = ONE / np.sqrt(squares / f32(count) + eps)
    for j in range(count):
        out[j] *= inverse
    return inverse


@parallel
def layer_norm(x: Any, gain: Any, shift: Any, eps: Any, out: Any) -> None:
    """out (N, C) = layer norm of x (N, C); gain and shift (C,) float32."""
    for block in prange((x.shape[0] + BLOCK - 1) // BLOCK):
        unit = np.empty(x.shape[1], f32)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, x.shape[0])):
            normalise(x[i], eps, unit)
            row = out[i]
            for j in range(unit.shape[0]):
                row[j] = fit(unit[j] * gain[j] + shift[j], row)


@parallel
def layer_norm_backward(
    x: Any, grad: Any, gain: Any, shift: Any, eps: Any, d_x: Any, d_gain: Any, d_shift: Any, again: Any
) -> None:
    """d_x (N, C) from grad (N, C) by the norm's output, which `again` gets; d_gain and d_shift (blocks, C) float32.

    The last two are sums over BLOCK rows each: whoever calls adds the blocks up.
    """
    width = x.shape[1]
    for block in prange((x.shape[0] + BLOCK - 1) // BLOCK):
        unit, wide, scaled = np.empty(width, f32), np.empty(width, f32), np.empty(width, f32)
        by_gain, by_shift = d_gain[block], d_shift[block]
        by_gain[:], by_shift[:] = f32(0.0), f32(0.0)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, x.shape[0])):
            inverse, row = normalise(x[i], eps, unit), grad[i]
            mean, along = f32(0.0), f32(0.0)
            for j in range(width):
                wide[j] = widen(row[j])
            for j in range(width):
                scaled[j] = wide[j] * gain[j]
            for j in range(width):
                mean += scaled[j]
                along += scaled[j] * unit[j]
            mean, along = mean / f32(width), along / f32(width)
            for j in range(width):
                by_shift[j] += wide[j]
            for j in range(width):
                by_gain[j] += wide[j] * unit[j]
            out, same = d_x[i], again[i]
            for j in range(width):
                out[j] = fit((scaled[j] - mean - unit[j] * along) * inverse, out)
            for j in range(width):
                same[j] = fit(unit[j] * gain[j] + shift[j], same)


@parallel
def gelu_backward_again(x: Any, grad: Any, again: Any) -> None:
    """grad *= gelu_tanh'(x) in place, and again = gelu_tanh(x): the two share their exponential. All (N, F)."""
    for i in prange(x.shape[0]):
        row, slope, same = x[i], grad[i], again[i]
        for j in range(row.shape[0]):
            v = widen(row[j])
            s = ONE / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v)))
            same[j] = fit(v * s, same)
            d = s + v * s * (ONE - s) * GELU_A * (ONE + f32(3.0) * GELU_B * v * v)
            slope[j] = fit(widen(slope[j]) * d, slope)
