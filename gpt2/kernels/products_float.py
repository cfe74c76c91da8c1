"""Matrix products in float32, for training where a processor has AVX2 and no more: both sides packed, sums in
registers.

Goto & van de Geijn 2008: columns of the right side, LANES at a time, wait in the first cache while strips of TALL rows
of the left side pass from the second. Each sum is made by one thread in one order: the same bits come out whatever the
threads do.

    M rows  N columns  K numbers that a sum runs over
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import prange

from gpt2.kernels.cache import once, parallel
from gpt2.kernels.lanes import LANES
from gpt2.kernels.tiles import fetch, turn
from gpt2.kernels.tiles_float import STRIP, TALL, move, turn_eight, turned_tile

f32 = np.float32

DEPTH = 384  # of K at a time, at most
STRIPS = 16  # of the left side, in the second cache
BLOCK = STRIPS * TALL  # rows
APART = 2  # rows more than needed: strips a multiple of 4,096 bytes apart would share a few places of the first cache
AHEAD = 8  # rows for which memory is asked before they are read
AT_ONCE = 4  # panels that one thread packs side by side
PANELS = 128  # of the right side, packed at a time


@once
def pack_panels(b: Any, turned: Any, k: Any, deep: Any, column: Any, count: Any, out: Any) -> None:
    """out[n, p, j] = number k + p of column `column` + LANES n + j of b (K, N), or (N, K) if `turned`: `count` panels.

    Past the last column are zeros.
    """
    step, columns = 4 * b.shape[1], b.shape[0] if turned else b.shape[1]
    whole = count if column + count * LANES <= columns else count - 1
    size = 4 * LANES * out.shape[1]
    if turned:
        for n in range(whole):
            start, full = b.ctypes.data + (column + n * LANES) * step + 4 * k, deep // LANES * LANES
            for p in range(0, full, LANES):
                turn(start + 4 * p, step, out.ctypes.data + n * size + 4 * LANES * p, 4 * LANES)
            for p in range(full, deep):
                for j in range(LANES):
                    out[n, p, j] = b[column + n * LANES + j, k + p]
    else:
        start = b.ctypes.data + k * step + 4 * column
        for p in range(deep):
            row = start + p * step
            for n in range(whole):
                fetch(row + AHEAD * step + 4 * LANES * n)
                move(LANES, row + 4 * LANES * n, out.ctypes.data + n * size + 4 * LANES * p)
    if whole < count:
        first = column + whole * LANES
        for p in range(deep):
            for j in range(columns - first):
                out[whole, p, j] = b[first + j, k + p] if turned else b[k + p, first + j]
            out[whole, p, columns - first :] = f32(0.0)


@once
def pack_strips(a: Any, turned: Any, k: Any, deep: Any, top: Any, bottom: Any, out: Any) -> None:
    """out[s, p, i] = number k + p of row `top` + TALL s + i of a (M, K), or (K, M) if `turned`, below `bottom`.

    Past the last row are any numbers.
    """
    if turned:
        step, columns = 4 * a.shape[1], a.shape[1]
        start, size = a.ctypes.data + k * step, 4 * STRIP * out.shape[1]
        whole = min((bottom - top) // TALL, (columns - STRIP - top) // TALL + 1) if columns >= top + STRIP else 0
        for p in range(deep):
            here, to = start + p * step + 4 * top, out.ctypes.data + 4 * STRIP * p
            for line in range(0, 4 * (bottom - top), 64):
                fetch(here + AHEAD * step + line)
            for strip in range(whole):
                move(STRIP, here + 4 * TALL * strip, to + size * strip)
            for i in range(top + whole * TALL, bottom):
                out[(i - top) // TALL, p, (i - top) % TALL] = a[k + p, i]
    else:
        step, whole = 4 * a.shape[1], deep // STRIP * STRIP
        for first in range(top, bottom, TALL):
            strip, rows = out[(first - top) // TALL], min(TALL, bottom - first)
            for p in range(0, whole, STRIP):
                if p % LANES == 0:
                    for i in range(TALL, 2 * TALL):  # of the next strip, a line a row
                        fetch(a.ctypes.data + (first + i) * step + 4 * (k + p))
                turn_eight(a.ctypes.data + first * step + 4 * (k + p), step, rows, strip.ctypes.data + 4 * STRIP * p)
            for p in range(whole, deep):
                for i in range(rows):
                    strip[p, i] = a[first + i, k + p]


@once
def put(part: Any, out: Any, row: Any, column: Any, add: Any) -> None:
    """The part of a tile that lies within out."""
    for i in range(min(TALL, out.shape[0] - row)):
        for j in range(min(LANES, out.shape[1] - column)):
            out[row + i, column + j] = part[i, j] + (out[row + i, column + j] if add else f32(0.0))


@parallel
def product(
    a: Any, a_turned: Any, b: Any, b_turned: Any, bias: Any, add: Any, out: Any, packed: Any, groups: Any, even: Any
) -> None:
    """out (M, N) = a @ b + bias (N rounded up to LANES), or added to out, where bias must be 0.

    a is (M, K), or (K, M) if `a_turned`; b (K, N), or (N, K) if `b_turned`. packed (at least PANELS, DEPTH, LANES) is
    room to work in. The columns of a block of rows are worked at in so many groups, and the blocks
    are a multiple of `even`.
    """
    (rows, columns), length = out.shape, a.shape[0] if a_turned else a.shape[1]
    step = 4 * out.shape[1]
    cuts = (length + DEPTH - 1) // DEPTH
    nothing = np.zeros(LANES, f32)
    strips_all = (rows + TALL - 1) // TALL
    blocks = (strips_all + STRIPS - 1) // STRIPS
    blocks = min((blocks + even - 1) // even * even, strips_all)
    all_panels = (columns + LANES - 1) // LANES
    for begin in range(0, all_panels, PANELS):
        panels = min(PANELS, all_panels - begin)
        for cut in range(cuts):
            k, end = cut * length // cuts, (cut + 1) * length // cuts
            deep, adding = end - k, add or cut > 0
            for part in prange((panels + AT_ONCE - 1) // AT_ONCE):
                first = part * AT_ONCE
                count = min(AT_ONCE, panels - first)
                pack_panels(b, b_turned, k, deep, (begin + first) * LANES, count, packed[first:])
            for item in prange(blocks * groups):
                block, group = item // groups, item % groups
                top = block * strips_all // blocks * TALL
                bottom = min((block + 1) * strips_all // blocks * TALL, rows)
                strips = np.empty((STRIPS, DEPTH + APART, STRIP), f32)
                part = np.empty((TALL, LANES), f32)
                pack_strips(a, a_turned, k, deep, top, bottom, strips)
                for panel in range(group * panels // groups, (group + 1) * panels // groups):
                    column = (begin + panel) * LANES
                    right = packed[panel].ctypes.data
                    start = nothing.ctypes.data if adding else bias.ctypes.data + 4 * column
                    for strip in range((bottom - top + TALL - 1) // TALL):
                        row, left = top + strip * TALL, strips[strip].ctypes.data
                        if row + TALL <= rows and column + LANES <= columns:
                            place = out.ctypes.data + row * step + 4 * column
                            turned_tile(TALL, left, 4 * STRIP, deep, right, 4 * LANES, place, step, start,
                                        1 if adding else 0)  # fmt: skip
                        else:
                            turned_tile(TALL, left, 4 * STRIP, deep, right, 4 * LANES, part.ctypes.data, 4 * LANES,
                                        start, 0)  # fmt: skip
                            put(part, out, row, column, adding)


class _Room(threading.local):
    def __init__(self) -> None:
        self.memory = np.empty((PANELS, DEPTH, LANES), f32)


_room = _Room()


def room() -> Any:
    """The memory that `product` packs into, kept from call to call, each thread's own."""
    return _room.memory
