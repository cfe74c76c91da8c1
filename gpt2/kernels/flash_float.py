"""flash.py's attention in float32: the same blocks of queries and keys, in tiles for AVX2.

An operand needs no words of two numbers here: keys are turned once, so that a tile reads the numbers of sixteen keys
side by side, and everything else is read where it lies. Rows have LANES numbers more than they need: a power of two
from one to the next would put them all in a few places of the first cache.

    H heads  T tokens  P tokens rounded up to ROWS  D head_dim  S keys that a block of queries sees, at most
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from gpt2.kernels.cache import once, parallel
from gpt2.kernels.flash import ROWS, backward_rows, gather, lowest, scatter, softmax_row, widest
from gpt2.kernels.lanes import LANES
from gpt2.kernels.tiles import turn
from gpt2.kernels.tiles_float import TALL, tile, turned_tile

f32 = np.float32

WHOLE, REST = ROWS // TALL * TALL, ROWS % TALL  # of a block's rows, those in whole tiles


@once
def strip(first: Any, a: Any, a_row: Any, a_column: Any, depth: Any, b: Any, b_row: Any, c: Any, c_row: Any,
          start: Any, add: Any) -> None:  # fmt: skip
    """`tile` of a block's rows from `first` on: the last ones of it are few."""
    if first < WHOLE:
        tile(TALL, a, a_row, a_column, depth, b, b_row, c, c_row, start, add)
    else:
        tile(REST, a, a_row, a_column, depth, b, b_row, c, c_row, start, add)


@once
def turned_strip(first: Any, a: Any, a_row: Any, depth: Any, b: Any, b_row: Any, c: Any, c_row: Any, start: Any,
                 add: Any) -> None:  # fmt: skip
    """`turned_tile` of them."""
    if first < WHOLE:
        turned_tile(TALL, a, a_row, depth, b, b_row, c, c_row, start, add)
    else:
        turned_tile(REST, a, a_row, depth, b, b_row, c, c_row, start, add)


@njit(nogil=True)
def by_keys(rows: Any, row: Any, width: Any, turned: Any, long: Any, scores: Any, seen: Any) -> None:
    """scores (ROWS, seen) = rows (ROWS, width) @ turned (width, seen), but where a tile's rows come before its keys.

    The last ROWS of the keys seen are the queries' own places; rows and turned are addresses, with numbers a row.
    """
    step, nothing = 4 * scores.shape[1], np.zeros(LANES, f32)
    for j in range(0, seen, LANES):
        for i in range(max(0, j - seen + ROWS) // TALL * TALL, ROWS, TALL):
            place = scores.ctypes.data + i * step + 4 * j
            strip(i, rows + 4 * i * row, 4 * row, 4, width, turned + 4 * j, 4 * long, place, step,
                  nothing.ctypes.data, 0)  # fmt: skip


@njit(nogil=True)
def over_keys(weights: Any, seen: Any, values: Any, row: Any, out: Any, width: Any) -> None:
    """out (ROWS, width) = weights (ROWS, seen) @ values (seen, width), where the weights of later keys are zero."""
    step, out_step, nothing = 4 * weights.shape[1], 4 * out.shape[1], np.zeros(LANES, f32)
    for j in range(0, width, LANES):
        for i in range(0, ROWS, TALL):
            depth = min(seen, seen - ROWS + i + TALL)
            place = out.ctypes.data + i * out_step + 4 * j
            strip(i, weights.ctypes.data + i * step, step, 4, depth, values + 4 * j, 4 * row, place, out_step,
                  nothing.ctypes.data, 0)  # fmt: skip


@njit(nogil=True)
def over_queries(weights: Any, seen: Any, rows: Any, row: Any, out: Any, width: Any) -> None:
    """out (seen, width) += weights (ROWS, seen)' @ rows (ROWS, width), where the weights of later keys are zero."""
    step, out_step, nothing = 4 * weights.shape[1], 4 * out.shape[1], np.zeros(LANES, f32)
    for top in range(0, seen, ROWS):
        for j in range(0, width, LANES):
            for i in range(0, ROWS, TALL):
                first = i if top + ROWS == seen else 0
                place = out.ctypes.data + (top + i) * out_step + 4 * j
                left, right = weights.ctypes.data + first * step + 4 * (top + i), rows + 4 * (first * row + j)
                turned_strip(i, left, step, ROWS - first, right, 4 * row, place, out_step, nothing.ctypes.data, 1)


@once
def turn_rows(rows: Any, width: Any, out: Any) -> None:
    """out (D, P) = rows (P, D) turned, both with further columns."""
    step, to = 4 * rows.shape[1], 4 * out.shape[1]
    for t in range(0, rows.shape[0], LANES):
        for d in range(0, width, LANES):
            turn(rows.ctypes.data + t * step + 4 * d, step, out.ctypes.data + d * to + 4 * t, to)


@parallel
def forward(
    q: Any, k: Any, v: Any, steps: Any, heads: Any, length: Any, lows: Any, out: Any, norms: Any, scale: Any
) -> None:
    """As flash.forward, on flat memory of float32."""
    width, padded = out.shape[3], (length + ROWS - 1) // ROWS * ROWS
    wide, long = width + LANES, padded + LANES
    for n in prange(out.shape[0] * heads):
        b, h = n // heads, n % heads
        start, low = b * steps[0] + h * width, lows[b % lows.shape[0]]
        span = widest(low) + LANES
        rows, v_rows = np.empty((padded, wide), f32), np.empty((padded, wide), f32)
        k_turned = np.empty((width, long), f32)
        scores, weights = np.empty((ROWS, span), f32), np.empty((ROWS, span), f32)
        result, totals = np.empty((ROWS, wide), f32), np.empty(ROWS, f32)
        gather(k, start, steps[1], rows, length, width)
        turn_rows(rows, width, k_turned)
        gather(v, start, steps[1], v_rows, length, width)
        gather(q, start, steps[1], rows, length, width)
        for first in range(0, length, ROWS):
            begin = lowest(low, first)
            seen = first + ROWS - begin
            by_keys(rows[first:].ctypes.data, wide, width, k_turned.ctypes.data + 4 * begin, long, scores, seen)
            for i in range(ROWS):
                nearest = low[min(first + i, length - 1)] - begin
                totals[i], norm = softmax_row(scores[i], weights[i, :seen], nearest, first + i + 1 - begin, scale)
                if first + i < length:
                    norms[b, h, first + i] = norm
            over_keys(weights, seen, v_rows[begin:].ctypes.data, wide, result, width)
            for i in range(min(ROWS, length - first)):
                inverse, place, row = f32(1.0) / totals[i], out[b, first + i, h], result[i]
                for d in range(width):
                    place[d] = row[d] * inverse


@parallel
def backward(
    q: Any, k: Any, v: Any, steps: Any, heads: Any, length: Any, lows: Any, grad: Any, grad_steps: Any, norms: Any,
    scale: Any, out: Any,
) -> None:  # fmt: skip
    """As flash.backward, on flat memory of float32."""
    width, padded = out.shape[4], (length + ROWS - 1) // ROWS * ROWS
    wide, long = width + LANES, padded + LANES
    for n in prange(out.shape[0] * heads):
        b, h = n // heads, n % heads
        start, grad_start = b * steps[0] + h * width, b * grad_steps[0] + h * width
        low = lows[b % lows.shape[0]]
        span = widest(low) + LANES
        q_rows, g_rows = np.empty((padded, wide), f32), np.empty((padded, wide), f32)
        k_rows, rows = np.empty((padded, wide), f32), np.empty((padded, wide), f32)
        k_turned, v_turned = np.empty((width, long), f32), np.empty((width, long), f32)
        d_k, d_v = np.zeros((padded, wide), f32), np.zeros((padded, wide), f32)
        scores, grads = np.empty((ROWS, span), f32), np.empty((ROWS, span), f32)
        slopes, d_q = np.empty((ROWS, span), f32), np.empty((ROWS, wide), f32)
        gather(k, start, steps[1], k_rows, length, width)
        turn_rows(k_rows, width, k_turned)
        gather(v, start, steps[1], rows, length, width)
        turn_rows(rows, width, v_turned)
        gather(q, start, steps[1], q_rows, length, width)
        gather(grad, grad_start, grad_steps[1], g_rows, length, width)
        for first in range(0, length, ROWS):
            begin = lowest(low, first)
            seen = first + ROWS - begin
            queries, above = q_rows[first:].ctypes.data, g_rows[first:].ctypes.data
            by_keys(queries, wide, width, k_turned.ctypes.data + 4 * begin, long, scores, seen)
            by_keys(above, wide, width, v_turned.ctypes.data + 4 * begin, long, grads, seen)
            for i in range(ROWS):
                t = min(first + i, length - 1)
                end = first + i + 1 - begin if first + i < length else 0  # a query behind the end sees nothing
                nearest = min(low[t] - begin, end)
                backward_rows(scores[i, :seen], grads[i, :seen], slopes[i, :seen], nearest, end, scale, norms[b, h, t])
            over_keys(slopes, seen, k_rows[begin:].ctypes.data, wide, d_q, width)
            scatter(d_q, out[b, :, 0, h], first, min(ROWS, length - first))
            over_queries(scores, seen, above, wide, d_v[begin:], width)
            over_queries(slopes, seen, queries, wide, d_k[begin:], width)
        scatter(d_k, out[b, :, 1, h], 0, length)
        scatter(d_v, out[b, :, 2, h], 0, length)
