"""Products with packed matrices, and the short forms of activations that they take.

T tokens  K columns, padded to 64
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel, once
from gpt2.kernels.formats import narrow, widen
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, GROUP, INT4, INT8, LANES
from gpt2.kernels.scalars import floats, halves, ints, largest, share, signed, unsigned, words
from gpt2.kernels.vectors import tile_bytes, tile_float, tile_halves

f32 = np.float32


@kernel
def float_tile(m: Any, kind: Any, w: Any, x: Any, x_stride: Any, columns: Any, out: Any, out_stride: Any, bias: Any,
               add: Any) -> None:  # fmt: skip
    """`tile_float` or, for bfloat16 (x too, its stride in such numbers), `tile_halves` for an m known only now."""
    if kind == FLOAT32:
        if m == 8:
            tile_float(8, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        elif m == 4:
            tile_float(4, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        elif m == 2:
            tile_float(2, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        else:
            tile_float(1, 0, w, x, x_stride, columns, out, out_stride, bias, add)
    elif kind == BFLOAT16:
        if m == 8:
            tile_halves(8, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        elif m == 4:
            tile_halves(4, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        elif m == 2:
            tile_halves(2, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        else:
            tile_halves(1, w, x, x_stride, columns // 2, out, out_stride, bias, add)
    elif m == 8:
        tile_float(8, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    elif m == 4:
        tile_float(4, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    elif m == 2:
        tile_float(2, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    else:
        tile_float(1, 2, w, x, x_stride, columns, out, out_stride, bias, add)


@once
def byte_tile(m: Any, kind: Any, w: Any, scales: Any, per: Any, x: Any, x_stride: Any, x_scales: Any, x_sums: Any,
              stride: Any, groups: Any, out: Any, out_stride: Any, bias: Any, add: Any) -> None:  # fmt: skip
    """`tile_bytes` for an m and a kind that are known only now."""
    if kind == INT8:
        if m == 8:
            tile_bytes(8, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
        elif m == 4:
            tile_bytes(4, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
        elif m == 2:
            tile_bytes(2, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
        else:
            tile_bytes(1, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    elif m == 8:
        tile_bytes(8, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    elif m == 4:
        tile_bytes(4, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    elif m == 2:
        tile_bytes(2, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    else:
        tile_bytes(1, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)


@kernel
def tile_size(left: Any) -> Any:
    """Tokens of the next tile: 8, 4, 2 or 1."""
    if left >= 8:
        return 8
    if left >= 4:
        return 4
    return 2 if left >= 2 else 1


@kernel
def matmul(plan: Any, index: Any, x: Any, tokens: Any, out: Any, out_stride: Any, add: Any, worker: Any) -> None:
    """out (T, rows) = x (T, K) @ matrix' + bias, this worker's rows. x is float32; for other kinds its short form."""
    matrix = words(plan[at.MATRICES] + index * at.MATRIX_WIDTH * 8, at.MATRIX_WIDTH)
    kind, columns = matrix[at.KIND], matrix[at.COLUMNS]
    first, last = share(matrix[at.BLOCKS], worker, plan[at.WORKERS])
    groups = columns // GROUP
    if kind == INT8:
        block_bytes, scale_bytes = columns * LANES, -(-groups // matrix[at.PER]) * LANES * 2
    elif kind == INT4:
        block_bytes, scale_bytes = columns * LANES // 2, groups * LANES * 2
    else:
        block_bytes, scale_bytes = columns * LANES * (4 if kind == FLOAT32 else 2), 0
    row_bytes = columns * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    rows = x if kind == FLOAT32 else plan[at.BYTES]
    batch = max(8, plan[at.TILE_BYTES] // row_bytes // 8 * 8)  # tokens whose activations stay in the second cache
    for begin in range(0, tokens, batch):
        end = min(tokens, begin + batch)
        for block in range(first, last):
            w = matrix[at.DATA] + block * block_bytes
            scales = matrix[at.SCALE] + block * scale_bytes
            bias = matrix[at.BIAS] + block * LANES * 4
            t = begin
            while t < end:
                m = tile_size(end - t)
                place = out + (t * out_stride + block * LANES) * 4
                if kind <= BFLOAT16:
                    float_tile(m, kind, w, rows + t * row_bytes, columns, columns, place, out_stride, bias, add)
                else:
                    byte_tile(m, kind, w, scales, matrix[at.PER], rows + t * columns, columns,
                              plan[at.SCALES] + t * 4, plan[at.SUMS] + t * 4, plan[at.TOKENS_MOST], groups,
                              place, out_stride, bias, add)  # fmt: skip
                t += m


@kernel
def shorten(plan: Any, row: Any, token: Any, columns: Any, first: Any, last: Any) -> None:
    """Groups first to last of a token's row of floats -> the form that the weights are multiplied with, in BYTES.

    They begin and end with a pair of groups.
    """
    if plan[at.SHORT] == BFLOAT16:
        x = floats(row, columns)
        out = halves(plan[at.BYTES] + token * columns * 2, columns)
        for i in range(first * GROUP, last * GROUP):
            out[i] = narrow(x[i])
    elif plan[at.SHORT] == INT8:
        for group in range(first, last, 2):
            quantise(plan, row, token, columns, group, min(group + 2, last))


@kernel
def quantise(plan: Any, row: Any, token: Any, columns: Any, first: Any, last: Any) -> None:
    """A pair of groups (or the one that is left) as bytes: the scale that they share, and -128 times each one's sum."""
    scales, sums = floats(plan[at.SCALES], 1 << 40), ints(plan[at.SUMS], 1 << 40)
    top = largest(floats(row + first * GROUP * 4, (last - first) * GROUP), (last - first) * GROUP)
    inverse = f32(127.0) / top if top > f32(0.0) else f32(0.0)
    for group in range(first, last):
        x = floats(row + group * GROUP * 4, GROUP)
        out = signed(plan[at.BYTES] + token * columns + group * GROUP, GROUP)
        total = np.int32(0)
        for i in range(GROUP):
            q = np.int32(x[i] * inverse + f32(128.5)) - np.int32(128)
            out[i] = np.int8(q)
            total += q
        scales[group * plan[at.TOKENS_MOST] + token] = top / f32(127.0)
        sums[group * plan[at.TOKENS_MOST] + token] = total * np.int32(-128)


@kernel
def shorten_all(plan: Any, x: Any, columns: Any, tokens: Any, worker: Any) -> None:
    """x (T, K) -> BYTES; pairs of groups of all tokens are shared out."""
    groups = columns // GROUP
    pairs = (groups + 1) // 2
    first, last = share(tokens * pairs, worker, plan[at.WORKERS])
    for item in range(first, last):
        token, group = item // pairs, item % pairs * 2
        shorten(plan, x + token * columns * 4, token, columns, group, min(group + 2, groups))


@kernel
def look_up(matrix: Any, row: Any, out: Any) -> None:
    """out = one row of a packed matrix."""
    kind, columns, block, lane = matrix[at.KIND], matrix[at.COLUMNS], row // LANES, row % LANES
    if kind == FLOAT32:
        numbers = floats(matrix[at.DATA] + block * columns * LANES * 4, columns * LANES)
        for k in range(out.size):
            out[k] = numbers[k * LANES + lane]
    elif kind == BFLOAT16:
        bits = halves(matrix[at.DATA] + block * columns * LANES * 2, columns * LANES)
        for k in range(out.size):
            out[k] = widen(bits[(k // 2 * LANES + lane) * 2 + k % 2])
    else:
        stored = unsigned(matrix[at.DATA] + block * columns * LANES, columns * LANES)
        count = -(-(columns // GROUP) // matrix[at.PER])
        scales = halves(matrix[at.SCALE] + block * count * LANES * 2, count * LANES)
        for k in range(out.size):
            scale = widen(scales[k // (GROUP * matrix[at.PER]) * LANES + lane])
            out[k] = f32(np.int32(stored[k // 4 * 64 + lane * 4 + k % 4]) - np.int32(128)) * scale
