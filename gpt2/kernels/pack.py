"""Packing matrices for the processor's runner: the bytes of `model/quant.py`, several hundred times as fast.

Each call packs a range of 16-row blocks and releases the GIL, so that plain threads share a matrix. A block is first
laid out as (columns, 16) in a scratch tile, whatever the source's strides: 16 rows side by side fill a vector, and
every sum over columns runs in each lane by itself, in the order of the oracle. No fastmath: the same bits are
the point.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2.kernels.cache import exact, once
from gpt2.kernels.formats import narrow, widen
from gpt2.kernels.lanes import GROUP, LANES
from gpt2.kernels.words import as_bits

f32 = np.float32
u32 = np.uint32
i32 = np.int32

ROUND = f32(12582912.0)  # 1.5 * 2^23: added and taken off again, a small number is whole, ties to even
MAGNITUDE, EXPONENT = u32(0x7FFFFFFF), u32(0x7F800000)


class Source(NamedTuple):
    """A matrix in memory as it lies: weight (row, column) is flat[row * row_step + column * column_step]."""

    flat: npt.NDArray[np.float32]  # read-only, as a mapped file is: one type, so compiled once
    row_step: int
    column_step: int
    rows: int
    columns: int


def pack(
    matrix: npt.NDArray[np.float32],
    kind: str,
    data: npt.NDArray[Any],
    scales: npt.NDArray[np.uint16] | None = None,
    group: int = 0,
    clips: npt.NDArray[np.float32] | None = None,
    threads: int = 2,
) -> bool:
    """Fill data and scales, of the oracle's shapes, from W (N, K), or from a transposed view of (K, N).

    `group` is int8's, `clips` are int4's. False if W holds a number that is not finite.
    """
    source = _source(matrix)
    words = data if scales is None else data.view(np.uint32)[..., 0]
    extra: tuple[Any, ...] = ()
    if kind == "int8":
        extra = (scales, group or 4 * data.shape[1])
    elif kind == "int4":
        extra = (scales, clips)
    return _share(KERNELS[kind], len(data), threads, source, words, *extra)


def _share(kernel: Callable[..., bool], blocks: int, threads: int, *arguments: Any) -> bool:
    """Run the kernel on ranges of blocks, one for each thread."""
    threads = max(1, min(threads, blocks))
    cuts = [blocks * i // threads for i in range(threads + 1)]
    if threads == 1:
        return kernel(*arguments, 0, blocks)
    with ThreadPoolExecutor(threads) as pool:
        return all(pool.map(lambda begin, end: kernel(*arguments, begin, end), cuts[:-1], cuts[1:]))


def _source(matrix: npt.NDArray[np.float32]) -> Source:
    rows, columns = matrix.shape
    if matrix.flags.c_contiguous:
        flat, steps = matrix.reshape(-1), (columns, 1)
    else:
        flat, steps = np.ascontiguousarray(matrix.T).reshape(-1), (1, rows)
    flat = flat.view()
    flat.flags.writeable = False
    return Source(flat, *steps, rows, columns)


@once
def _whole(value: Any, low: Any, high: Any) -> Any:
    """Cut to [low, high] and round, ties to even."""
    return (min(max(value, low), high) + ROUND) - ROUND


@exact
def _load(source: Any, block: int, tile: Any) -> bool:
    """16 rows into tile (Kp, 16), zeros where there are none; False if a number is not finite."""
    flat, row_step, column_step, rows, columns = source
    first = block * LANES
    count = min(LANES, rows - first)
    if count < LANES:
        tile[:columns] = f32(0.0)
    if row_step == 1 and count == LANES:
        for column in range(columns):
            start = first + column * column_step
            for lane in range(LANES):
                tile[column, lane] = flat[start + lane]
    else:
        for column in range(columns):
            start = first * row_step + column * column_step
            for lane in range(count):
                tile[column, lane] = flat[start + lane * row_step]
    top = u32(0)
    for column in range(columns):
        for lane in range(LANES):
            top = max(top, as_bits(tile[column, lane]) & MAGNITUDE)
    return top < EXPONENT


@exact
def pack_float32(source: Any, data: Any, begin: int, end: int) -> bool:
    """Blocks begin to end of data, float32 [Np/16][Kp][16]; False if a number is not finite."""
    for block in range(begin, end):
        data[block, source.columns :] = f32(0.0)
        if not _load(source, block, data[block]):
            return False
    return True


@exact
def pack_bfloat16(source: Any, data: Any, begin: int, end: int) -> bool:
    """Blocks begin to end of data, uint16 [Np/16][Kp/2][16][2]; False if a number is not finite."""
    tile = np.zeros((2 * data.shape[1], LANES), f32)
    for block in range(begin, end):
        if not _load(source, block, tile):
            return False
        target = data[block]
        for pair in range(len(target)):
            for lane in range(LANES):
                target[pair, lane, 0] = narrow(tile[2 * pair, lane])
                target[pair, lane, 1] = narrow(tile[2 * pair + 1, lane])
    return True


@exact
def pack_int8(source: Any, data: Any, scales: Any, group: int, begin: int, end: int) -> bool:
    """Blocks begin to end of data, uint32 [Np/16][Kp/4][16], and scales; False if a number is not finite."""
    width = data.shape[1] * 4
    tile = np.zeros((width, LANES), f32)
    for block in range(begin, end):
        if not _load(source, block, tile):
            return False
        for number in range(scales.shape[1]):
            start = number * group
            stop = min(start + group, width)
            _int8_group(tile[start:stop], data[block, start // 4 : stop // 4], scales[block, number])
    return True


@exact
def _int8_group(tile: Any, words: Any, scales: Any) -> None:
    """tile (group, 16) -> four columns to a word, words (group / 4, 16), and 16 scales."""
    top, step = np.zeros(LANES, f32), np.empty(LANES, f32)
    for column in range(tile.shape[0]):
        for lane in range(LANES):
            top[lane] = max(top[lane], abs(tile[column, lane]))
    for lane in range(LANES):
        scales[lane] = narrow(top[lane] / f32(127.0))
        scale = widen(scales[lane])
        step[lane] = scale if scale != f32(0.0) else f32(np.inf)  # a number by infinity is 0
    for word in range(words.shape[0]):
        for lane in range(LANES):
            total = u32(0)
            for i in range(4):
                q = _whole(tile[4 * word + i, lane] / step[lane], f32(-127.0), f32(127.0))
                total |= u32(i32(q) + i32(128)) << u32(8 * i)
            words[word, lane] = total


@exact
def pack_int4(source: Any, data: Any, scales: Any, clips: Any, begin: int, end: int) -> bool:
    """Blocks begin to end of data, uint32 [Np/16][Kp/64][8][16], and scales; False if a number is not finite."""
    tile = np.zeros((data.shape[1] * GROUP, LANES), f32)
    units = np.empty((GROUP, LANES), f32)
    for block in range(begin, end):
        if not _load(source, block, tile):
            return False
        for number in range(data.shape[1]):
            part = tile[number * GROUP : (number + 1) * GROUP]
            _search(part, units, clips, scales[block, number])
            _int4_group(part, scales[block, number], data[block, number])
    return True


@exact
def _search(tile: Any, units: Any, clips: Any, scales: Any) -> None:
    """The scales (16) of tile (64, 16) with the least squared error; units (64, 16) is scratch. See the oracle."""
    top, best, found = np.zeros(LANES, f32), np.full(LANES, f32(-1.0)), np.zeros(LANES, f32)
    products, squares = np.empty(LANES, f32), np.empty(LANES, f32)
    for column in range(GROUP):
        for lane in range(LANES):
            value = tile[column, lane]
            top[lane] = value if abs(value) > abs(top[lane]) else top[lane]
    for column in range(GROUP):
        for lane in range(LANES):
            units[column, lane] = tile[column, lane] / (top[lane] if top[lane] != f32(0.0) else f32(1.0))
    for clip in clips:
        products[:] = f32(0.0)
        squares[:] = f32(0.0)
        for column in range(GROUP):
            for lane in range(LANES):
                unit = units[column, lane]
                q = _whole(unit * -clip, f32(-8.0), f32(7.0))
                products[lane] += unit * q
                squares[lane] += q * q
        for lane in range(LANES):
            square = max(squares[lane], f32(1.0))
            gain = products[lane] * products[lane] / square
            found[lane] = products[lane] / square if gain > best[lane] else found[lane]
            best[lane] = max(gain, best[lane])
    for lane in range(LANES):
        scales[lane] = narrow(found[lane] * top[lane] + f32(0.0))


@exact
def _int4_group(tile: Any, scales: Any, words: Any) -> None:
    """tile (64, 16) by its scales -> eight columns to a word, words (8, 16)."""
    step = np.empty(LANES, f32)
    for lane in range(LANES):
        scale = widen(scales[lane])
        step[lane] = scale if scale != f32(0.0) else f32(np.inf)
    for word in range(8):
        for lane in range(LANES):
            total = u32(0)
            for half in range(2):
                for i in range(4):
                    q = _whole(tile[32 * half + 4 * word + i, lane] / step[lane], f32(-8.0), f32(7.0))
                    total |= u32(i32(q) + i32(8)) << u32(8 * i + 4 * half)
            words[word, lane] = total


KERNELS: dict[str, Callable[..., bool]] = {
    "float32": pack_float32,
    "bfloat16": pack_bfloat16,
    "int8": pack_int8,
    "int4": pack_int4,
}
