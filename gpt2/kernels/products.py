"""Matrix products of bfloat16 with float32 sums, for training: 64 columns are packed at a time and stay in the cache.

A core multiplies two pairs in 16 lanes a cycle; a tile of 6 rows by 64 columns keeps its sums in registers, so that
this unit, not the memory, is what a product waits for (Goto & van de Geijn 2008). The left matrix is read where it
lies. Each sum is made by one thread in one order: the same bits come out whatever the threads do.

    M rows  N columns (a multiple of 64)  K numbers that a sum runs over (M, K even)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from gpt2.kernels.cache import once, parallel
from gpt2.kernels.formats import narrow, widen
from gpt2.kernels.lanes import LANES
from gpt2.kernels.tiles import COLUMNS, TALL, fetch, put_square, tile, turn, turn_halves

f32, u32 = np.float32, np.uint32

AHEAD = 12  # rows for which memory is asked before they are read or written
ROWS = 240  # rows whose float32 sums wait to be rounded: a multiple of TALL and of LANES
DEPTH, WHOLE = 2048, 4096  # K is cut into parts of DEPTH where it is more than WHOLE


@parallel
def transpose(x: Any, out: Any) -> None:
    """out[:F, :N] = x (N, F) turned."""
    (rows, columns), along = x.shape, out.shape[1]
    for block in prange((columns + 2 * LANES - 1) // (2 * LANES)):
        first, end = block * 2 * LANES, min((block + 1) * 2 * LANES, columns)
        whole = rows // LANES * LANES if end - first == 2 * LANES else 0
        for i in range(0, whole, LANES):
            source, place = x.ctypes.data + 2 * (i * columns + first), out.ctypes.data + 2 * (first * along + i)
            turn_halves(source, 2 * columns, place, 2 * along)
        for i in range(whole, rows):
            for j in range(first, end):
                out[j, i] = x[i, j]


@once
def pack_pairs(b: Any, k: Any, depth: Any, column: Any, out: Any) -> None:
    """out[p, j] = numbers k + 2 p and k + 2 p + 1 of column `column` + j of b (K, N)."""
    step = 2 * b.shape[1]
    start = b.ctypes.data + k * step + 2 * column
    for p in range(depth // 2):
        for row in range(2 * (p + AHEAD), 2 * (p + AHEAD) + 2):
            fetch(start + row * step)
            fetch(start + row * step + 64)
        even, odd, both = b[k + 2 * p, column : column + COLUMNS], b[k + 2 * p + 1, column : column + COLUMNS], out[p]
        for j in range(COLUMNS):
            both[j] = u32(even[j]) | (u32(odd[j]) << u32(16))


@once
def pack_words(b: Any, k: Any, depth: Any, column: Any, out: Any) -> None:
    """The same of b (N, K): a column's numbers lie side by side, so that words of two are turned."""
    step, full = 2 * b.shape[1], depth // 2 // LANES * LANES
    start = b.ctypes.data + column * step + 2 * k
    for j in range(0, COLUMNS, LANES):
        for p in range(0, full, LANES):
            for i in range(LANES):
                fetch(start + (j + i) * step + 4 * (p + 2 * LANES))
            turn(start + j * step + 4 * p, step, out.ctypes.data + 4 * (p * COLUMNS + j), 4 * COLUMNS)
        for p in range(full, depth // 2):
            for i in range(j, j + LANES):
                out[p, i] = u32(b[column + i, k + 2 * p]) | (u32(b[column + i, k + 2 * p + 1]) << u32(16))


@once
def tiles(
    a: Any,
    k: Any,
    depth: Any,
    first: Any,
    rows: Any,
    packed: Any,
    sums: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    add: Any,
) -> None:
    """`tile` of a[first : first + rows, k : k + depth] and packed, one below the other; added to sums if k is not 0."""
    step, pairs, right = 2 * a.shape[1], depth // 2, packed.ctypes.data
    left, held = a.ctypes.data + first * step + 2 * k, sums.ctypes.data
    full = rows // TALL * TALL
    for i in range(0, full, TALL):
        place = out + i * out_row if out else 0
        tile(TALL, left + i * step, step, pairs, right, held + 4 * COLUMNS * i, k, place, out_row, bias, add)
    for i in range(full, rows, 2):
        place = out + i * out_row if out else 0
        tile(2, left + i * step, step, pairs, right, held + 4 * COLUMNS * i, k, place, out_row, bias, add)


@once
def put_turned(sums: Any, rows: Any, add: Any, out: Any, first: Any, column: Any) -> None:
    """out[column + j, first + i] = sums[i, j], or added to it."""
    step, whole = 2 * out.shape[1], rows // LANES * LANES
    start = out.ctypes.data + column * step + 2 * first
    for i in range(0, whole, LANES):
        for j in range(0, COLUMNS, LANES):
            put_square(sums.ctypes.data + 4 * (i * COLUMNS + j), start + j * step + 2 * i, step, add)
    for i in range(whole, rows):
        for j in range(COLUMNS):
            held = widen(out[column + j, first + i]) if add else f32(0.0)
            out[column + j, first + i] = narrow(sums[i, j] + held)


@parallel
def product(a: Any, b: Any, by_words: Any, bias: Any, add: Any, out: Any, turned: Any, groups: Any, parts: Any) -> None:
    """out (M, N) = a[:, :K] @ b + bias, or added to out; b is (K, N), or (N, K) where `by_words`.

    `turned`: out is (N, M), and there is no bias. The columns are worked at in so many groups, the rows in `parts`.
    """
    length, columns = b.shape[::-1] if by_words else b.shape
    panels, step = columns // COLUMNS, 2 * out.shape[1]
    depth = length if length <= WHOLE else DEPTH
    for item in prange(groups * parts):
        group, part = item // parts, item % parts
        begin, end = group * panels // groups, (group + 1) * panels // groups
        blocks = (a.shape[0] + ROWS - 1) // ROWS
        top, bottom = part * blocks // parts * ROWS, min((part + 1) * blocks // parts * ROWS, a.shape[0])
        packed = np.empty((depth // 2, COLUMNS), u32)
        kept = (end - begin) * (bottom - top) if depth < length else 0
        sums = np.empty((max(kept, ROWS), COLUMNS), f32)
        for k in range(0, length, depth):
            deep = min(depth, length - k)
            for panel in range(begin, end):
                column = panel * COLUMNS
                if by_words:
                    pack_words(b, k, deep, column, packed)
                else:
                    pack_pairs(b, k, deep, column, packed)
                for first in range(top, bottom, ROWS):
                    rows = min(ROWS, bottom - first)
                    place = (panel - begin) * (bottom - top) + first - top if kept else 0
                    block = sums[place : place + rows]
                    last, goal = k + deep == length, 0
                    if last and not turned:
                        goal = out.ctypes.data + first * step + 2 * column
                    tiles(a, k, deep, first, rows, packed, block, goal, step, bias.ctypes.data + 4 * column, add)
                    if last and turned:
                        put_turned(block, rows, add, out, first, column)
