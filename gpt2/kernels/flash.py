"""Causal attention in one kernel for processors with bfloat16 products: tiles of scores that never leave the cache.

Forward keeps each row's log of the sum of exponentials; backward makes the probabilities again from it (Dao et al.
2022). One thread owns a head, ROWS queries at a time against the keys that they see: from `lows`, which never falls
from one token to the next, up to themselves. That is causal attention, a band, several texts a row, or all of these;
blocks of keys that nobody sees are never made. An instruction multiplies pairs of bfloat16, so an operand is stored in
words of two: pairs along the width (`words`) or of two neighbouring tokens (`pairs`), whichever the product sums over.

    H heads  T tokens  P tokens rounded up to ROWS  D head_dim  S keys that a block of queries sees, at most
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2.kernels.blocks import QUERIES
from gpt2.kernels.cache import once, parallel
from gpt2.kernels.formats import fit, narrow
from gpt2.kernels.lanes import FLOATS, I32, I64, INTS, LANES, Emitter
from gpt2.kernels.scalars import highest
from gpt2.kernels.scalars import quick_exp as exp

f32, u16, u32 = np.float32, np.uint16, np.uint32

ROWS = QUERIES  # and what keys are rounded up to
TALL, WIDE = 4, 4  # a tile of sums in registers: rows, and vectors of 16 columns
COLUMNS = WIDE * LANES


@intrinsic
def tile(typingctx: Any, a: Any, a_row: Any, a_pair: Any, pairs: Any, b: Any, b_pair: Any, c: Any, c_row: Any,
         add: Any) -> Any:  # fmt: skip
    """c (TALL, COLUMNS) = a (TALL, pairs) @ b (pairs, COLUMNS), or + c where `add` is not 0; sums in float32.

    a, b and c are addresses, the others steps in bytes: of a's rows and pairs, of b's pairs, of c's rows.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, a_pair, pairs, b, b_pair, c, c_row, add = args
        emit = Emitter(builder)
        sums = [emit.variables(WIDE, FLOATS) for _ in range(TALL)]
        with builder.if_then(builder.icmp_signed("!=", add, I64(0))):
            for m in range(TALL):
                for n in range(WIDE):
                    place = emit.at(emit.at(c, builder.mul(I64(m), c_row)), 4 * LANES * n)
                    builder.store(emit.load(place, FLOATS, 4), sums[m][n])
        with cgutils.for_range(builder, pairs) as loop:
            left, right = emit.at(a, builder.mul(loop.index, a_pair)), emit.at(b, builder.mul(loop.index, b_pair))
            vectors = [emit.load(emit.at(right, 4 * LANES * n), INTS, 4) for n in range(WIDE)]
            for m in range(TALL):
                two = emit.load(emit.at(left, builder.mul(I64(m), a_row)), I32, 2)
                for n in range(WIDE):
                    builder.store(emit.dot_halves(builder.load(sums[m][n]), vectors[n], two), sums[m][n])
        for m in range(TALL):
            for n in range(WIDE):
                emit.store(builder.load(sums[m][n]), emit.at(emit.at(c, builder.mul(I64(m), c_row)), 4 * LANES * n))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9), code


@njit(nogil=True)
def multiply(a: Any, a_row: Any, a_pair: Any, rows: Any, pairs: Any, b: Any, b_pair: Any, c: Any, width: Any,
             add: Any) -> None:  # fmt: skip
    """c[:rows, :width] = (or +=) a @ b by tiles; a and b addresses with steps in bytes, c a float32 matrix."""
    step = c.shape[1] * 4
    for j in range(0, width, COLUMNS):
        for i in range(0, rows, TALL):
            tile(a + i * a_row, a_row, a_pair, pairs, b + j * 4, b_pair, c.ctypes.data + i * step + j * 4, step, add)


@once
def gather(source: Any, start: Any, step: Any, out: Any, length: Any, width: Any) -> None:
    """out[t, d] = source[start + t * step + d] of one head, zeros from `length` on; out (P, at least D)."""
    for t in range(out.shape[0]):
        row = out[t]
        if t < length:
            place = start + t * step
            part = source[place : place + width]
            for d in range(width):
                row[d] = part[d]
        else:
            for d in range(width):
                row[d] = 0


@once
def words(rows: Any, out: Any) -> None:
    """out[w, t] = the two numbers 2 w and 2 w + 1 of token t: rows (P, D) -> (D / 2, P)."""
    for t0 in range(0, rows.shape[0], 16):
        for w in range(out.shape[0]):
            for t in range(t0, t0 + 16):
                out[w, t] = u32(rows[t, 2 * w]) | (u32(rows[t, 2 * w + 1]) << u32(16))


@once
def pairs(rows: Any, out: Any) -> None:
    """out[p, d] = number d of the two tokens 2 p and 2 p + 1: rows (P, D) -> (P / 2, D)."""
    for p in range(out.shape[0]):
        even, odd, both = rows[2 * p], rows[2 * p + 1], out[p]
        for d in range(both.shape[0]):
            both[d] = u32(even[d]) | (u32(odd[d]) << u32(16))


@once
def lowest(lows: Any, first: Any) -> Any:
    """The first key of the block of queries that begins at `first`, on a block's border."""
    return lows[first] // ROWS * ROWS


@once
def widest(lows: Any) -> Any:
    """S: the most keys that a block of queries sees."""
    most = 0
    for first in range(0, lows.shape[0], ROWS):
        most = max(most, first + ROWS - lowest(lows, first))
    return most


@once
def softmax_row(scores: Any, weights: Any, low: Any, end: Any, scale: Any) -> Any:
    """weights[low:end] = exp(scale (scores - their maximum)), zeros around; (sum, log of the true sum)."""
    seen, made = scores[low:end], weights[low:end]
    top, total = highest(seen, end - low), f32(0.0)
    for j in range(end - low):
        weight = exp((seen[j] - top) * scale)
        made[j] = fit(weight, made)
        total += weight
    weights[:low], weights[end:] = 0, 0
    return total, top * scale + f32(math.log(total))


@parallel
def forward(
    q: Any, k: Any, v: Any, steps: Any, heads: Any, length: Any, lows: Any, out: Any, norms: Any, scale: Any
) -> None:
    """q, k, v: flat memory (uint16) of B rows; head h of row b begins at b * steps[0] + h * D, a token is steps[1] on.

    lows (1 or B, T) int32; out (B, T, H, D) uint16; norms (B, H, T) float32.
    """
    width, padded = out.shape[3], (length + ROWS - 1) // ROWS * ROWS
    for n in prange(out.shape[0] * heads):
        b, h = n // heads, n % heads
        start, low = b * steps[0] + h * width, lows[b % lows.shape[0]]
        span = widest(low)
        rows, q_rows = np.empty((padded, width), u16), np.empty((padded, width), u16)
        k_words, v_pairs = np.empty((width // 2, padded), u32), np.empty((padded // 2, width), u32)
        scores, weights = np.empty((ROWS, span), f32), np.empty((ROWS, span), u16)
        result, totals = np.empty((ROWS, width), f32), np.empty(ROWS, f32)
        gather(k, start, steps[1], rows, length, width)
        words(rows, k_words)
        gather(v, start, steps[1], rows, length, width)
        pairs(rows, v_pairs)
        gather(q, start, steps[1], q_rows, length, width)
        for first in range(0, length, ROWS):
            begin = lowest(low, first)
            seen = first + ROWS - begin
            multiply(q_rows[first:].ctypes.data, 2 * width, 4, ROWS, width // 2, k_words.ctypes.data + 4 * begin,
                     4 * padded, scores, seen, 0)  # fmt: skip
            for i in range(ROWS):
                nearest = low[min(first + i, length - 1)] - begin
                totals[i], norm = softmax_row(scores[i], weights[i, :seen], nearest, first + i + 1 - begin, scale)
                if first + i < length:
                    norms[b, h, first + i] = norm
            multiply(weights.ctypes.data, 2 * span, 4, ROWS, seen // 2, v_pairs[begin // 2 :].ctypes.data, 4 * width,
                     result, width, 0)  # fmt: skip
            for i in range(min(ROWS, length - first)):
                inverse, place, row = f32(1.0) / totals[i], out[b, first + i, h], result[i]
                for d in range(width):
                    place[d] = narrow(row[d] * inverse)


@once
def backward_rows(scores: Any, grads: Any, slopes: Any, low: Any, end: Any, scale: Any, norm: Any) -> None:
    """One query's scores -> probabilities, grads (by these) -> gradient by the scores, both in place.

    slopes is the latter as it is multiplied further, or the same memory. What lies outside of low:end becomes zero.
    """
    row, grad, slope, dot = scores[low:end], grads[low:end], slopes[low:end], f32(0.0)
    for j in range(end - low):
        weight = exp(row[j] * scale - norm)
        row[j] = weight
        dot += weight * grad[j]
    for j in range(end - low):
        value = row[j] * (grad[j] - dot) * scale
        grad[j] = value
        slope[j] = fit(value, slope)
    scores[:low], grads[:low], slopes[:low] = 0, 0, 0
    scores[end:], grads[end:], slopes[end:] = 0, 0, 0


@once
def pair_up(values: Any, width: Any, out: Any) -> None:
    """out[p, j] = rows 2 p and 2 p + 1 of values at j, rounded to bfloat16."""
    for p in range(out.shape[0]):
        even, odd, both = values[2 * p], values[2 * p + 1], out[p]
        for j in range(width):
            both[j] = u32(narrow(even[j])) | (u32(narrow(odd[j])) << u32(16))


@once
def scatter(values: Any, out: Any, first: Any, count: Any) -> None:
    """out[first + i] = values[i] rounded; out (T, D) of one head."""
    for i in range(count):
        row, place = values[i], out[first + i]
        for d in range(place.shape[0]):
            place[d] = fit(row[d], place)


@parallel
def backward(
    q: Any, k: Any, v: Any, steps: Any, heads: Any, length: Any, lows: Any, grad: Any, grad_steps: Any, norms: Any,
    scale: Any, out: Any,
) -> None:  # fmt: skip
    """The gradients of q, k and v into out (B, T, 3, H, D); grad as q, with steps of its own."""
    width, padded = out.shape[4], (length + ROWS - 1) // ROWS * ROWS
    for n in prange(out.shape[0] * heads):
        b, h = n // heads, n % heads
        start, grad_start = b * steps[0] + h * width, b * grad_steps[0] + h * width
        low = lows[b % lows.shape[0]]
        span = widest(low)
        q_rows, g_rows = np.empty((padded, width), u16), np.empty((padded, width), u16)
        rows = np.empty((padded, width), u16)
        k_words, v_words = np.empty((width // 2, padded), u32), np.empty((width // 2, padded), u32)
        k_pairs, q_pairs = np.empty((padded // 2, width), u32), np.empty((padded // 2, width), u32)
        g_pairs = np.empty((padded // 2, width), u32)
        d_k, d_v = np.zeros((padded, width), f32), np.zeros((padded, width), f32)
        scores, grads = np.empty((ROWS, span), f32), np.empty((ROWS, span), f32)
        slopes, d_q = np.empty((ROWS, span), u16), np.empty((ROWS, width), f32)
        two_rows = np.empty((ROWS // 2, span), u32)
        gather(k, start, steps[1], rows, length, width)
        words(rows, k_words)
        pairs(rows, k_pairs)
        gather(v, start, steps[1], rows, length, width)
        words(rows, v_words)
        gather(q, start, steps[1], q_rows, length, width)
        pairs(q_rows, q_pairs)
        gather(grad, grad_start, grad_steps[1], g_rows, length, width)
        pairs(g_rows, g_pairs)
        for first in range(0, length, ROWS):
            begin, half = lowest(low, first), first // 2
            seen = first + ROWS - begin
            multiply(q_rows[first:].ctypes.data, 2 * width, 4, ROWS, width // 2, k_words.ctypes.data + 4 * begin,
                     4 * padded, scores, seen, 0)  # fmt: skip
            multiply(g_rows[first:].ctypes.data, 2 * width, 4, ROWS, width // 2, v_words.ctypes.data + 4 * begin,
                     4 * padded, grads, seen, 0)  # fmt: skip
            for i in range(ROWS):
                t = min(first + i, length - 1)
                end = first + i + 1 - begin if first + i < length else 0  # a query behind the end sees nothing
                nearest = min(low[t] - begin, end)
                backward_rows(scores[i, :seen], grads[i, :seen], slopes[i, :seen], nearest, end, scale, norms[b, h, t])
            multiply(slopes.ctypes.data, 2 * span, 4, ROWS, seen // 2, k_pairs[begin // 2 :].ctypes.data, 4 * width,
                     d_q, width, 0)  # fmt: skip
            scatter(d_q, out[b, :, 0, h], first, min(ROWS, length - first))
            pair_up(scores, seen, two_rows)
            multiply(two_rows.ctypes.data, 4, 4 * span, seen, ROWS // 2, g_pairs[half:].ctypes.data, 4 * width,
                     d_v[begin:], width, 1)  # fmt: skip
            pair_up(grads, seen, two_rows)
            multiply(two_rows.ctypes.data, 4, 4 * span, seen, ROWS // 2, q_pairs[half:].ctypes.data, 4 * width,
                     d_k[begin:], width, 1)  # fmt: skip
        scatter(d_k, out[b, :, 1, h], 0, length)
        scatter(d_v, out[b, :, 2, h], 0, length)
