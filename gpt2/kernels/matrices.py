"""Products with packed matrices, and the short forms of activations that they take.

T tokens  K columns, padded to 64
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import features
from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel, once
from gpt2.kernels.formats import narrow, widen
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, GROUP, INT4, INT8, LANES
from gpt2.kernels.scalars import floats, halves, ints, largest, share, shorts, signed, unsigned, words
from gpt2.kernels.vectors import tile_bytes, tile_float, tile_halves
from gpt2.kernels.wide import WIDE_TALL, tile_shorts, widen_weights

f32 = np.float32
# Tokens of a tile, beside 2 and 1: as many as the registers have room for the sums of. Sixteen of eight numbers hold
# twelve halves of a token's sums and what is added to them; bytes need more beside them.
TALL, HALF, TALL_BYTES, HALF_BYTES = (6, 3, 4, 3) if features.by_floats() else (8, 4, 8, 4)
WIDE_FROM = 4 * WIDE_TALL if features.by_avx2() else 1 << 40  # tokens that are worth laying weights out in 16 bits


@kernel
def float_tile(m: Any, kind: Any, w: Any, x: Any, x_stride: Any, columns: Any, out: Any, out_stride: Any, bias: Any,
               add: Any) -> None:  # fmt: skip
    """`tile_float` or, for bfloat16 (x too, its stride in such numbers), `tile_halves` for an m known only now."""
    if kind == FLOAT32:
        if m == TALL:
            tile_float(TALL, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        elif m == HALF:
            tile_float(HALF, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        elif m == 2:
            tile_float(2, 0, w, x, x_stride, columns, out, out_stride, bias, add)
        else:
            tile_float(1, 0, w, x, x_stride, columns, out, out_stride, bias, add)
    elif kind == BFLOAT16:
        if m == TALL:
            tile_halves(TALL, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        elif m == HALF:
            tile_halves(HALF, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        elif m == 2:
            tile_halves(2, w, x, x_stride, columns // 2, out, out_stride, bias, add)
        else:
            tile_halves(1, w, x, x_stride, columns // 2, out, out_stride, bias, add)
    elif m == TALL:
        tile_float(TALL, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    elif m == HALF:
        tile_float(HALF, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    elif m == 2:
        tile_float(2, 2, w, x, x_stride, columns, out, out_stride, bias, add)
    else:
        tile_float(1, 2, w, x, x_stride, columns, out, out_stride, bias, add)


@once
def byte_tile(m: Any, kind: Any, w: Any, scales: Any, per: Any, x: Any, x_stride: Any, x_scales: Any, x_sums: Any,
              stride: Any, groups: Any, out: Any, out_stride: Any, bias: Any, add: Any) -> None:  # fmt: skip
    """`tile_bytes` for an m and a kind that are known only now."""
    if kind == INT8:
        if m == TALL_BYTES:
            tile_bytes(TALL_BYTES, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride,
                       bias, add)  # fmt: skip
        elif m == HALF_BYTES:
            tile_bytes(HALF_BYTES, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride,
                       bias, add)  # fmt: skip
        elif m == 2:
            tile_bytes(2, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
        else:
            tile_bytes(1, 2, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    elif m == TALL_BYTES:
        tile_bytes(TALL_BYTES, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride,
                   bias, add)  # fmt: skip
    elif m == HALF_BYTES:
        tile_bytes(HALF_BYTES, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride,
                   bias, add)  # fmt: skip
    elif m == 2:
        tile_bytes(2, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)
    else:
        tile_bytes(1, 3, w, scales, per, x, x_stride, x_scales, x_sums, stride, groups, out, out_stride, bias, add)


@kernel
def tile_size(left: Any, kind: Any) -> Any:
    """Tokens of the next tile over a matrix of this kind."""
    tall, half = (TALL, HALF) if kind <= BFLOAT16 else (TALL_BYTES, HALF_BYTES)
    if left >= tall:
        return tall
    if left >= half:
        return half
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
    wide = kind >= INT8 and tokens >= WIDE_FROM
    tall, row_bytes = (WIDE_TALL, 2 * columns) if wide else (tile_size(1 << 40, kind), row_bytes)
    batch = max(1, plan[at.TILE_BYTES] // row_bytes // tall) * tall  # tokens whose activations stay in the second cache
    widened = plan[at.WIDENED] + worker * plan[at.WIDEST] * LANES * 2
    for begin in range(0, tokens, batch):
        end = min(tokens, begin + batch)
        for block in range(first, last):
            w = matrix[at.DATA] + block * block_bytes
            scales = matrix[at.SCALE] + block * scale_bytes
            bias = matrix[at.BIAS] + block * LANES * 4
            t = begin
            if wide:
                t = wide_tiles(plan, matrix, w, scales, t, end, out + block * LANES * 4, out_stride, bias, add, widened)
            while t < end:
                m = tile_size(end - t, kind)
                place = out + (t * out_stride + block * LANES) * 4
                if kind <= BFLOAT16:
                    float_tile(m, kind, w, rows + t * row_bytes, columns, columns, place, out_stride, bias, add)
                else:
                    byte_tile(m, kind, w, scales, matrix[at.PER], rows + t * columns, columns,
                              plan[at.SCALES] + t * 4, plan[at.SUMS] + t * 4, plan[at.TOKENS_MOST], groups,
                              place, out_stride, bias, add)  # fmt: skip
                t += m


@kernel
def wide_tiles(plan: Any, matrix: Any, w: Any, scales: Any, t: Any, end: Any, out: Any, out_stride: Any, bias: Any,
               add: Any, widened: Any) -> Any:  # fmt: skip
    """One block's products with tokens t to end, as far as whole tiles in 16 bits go; the first token that is left."""
    kind, columns = matrix[at.KIND], matrix[at.COLUMNS]
    if kind == INT8:
        widen_weights(2, w, columns, widened)
    else:
        widen_weights(3, w, columns, widened)
    while t + WIDE_TALL <= end:
        x, x_scales, place = plan[at.SHORTS] + t * columns * 2, plan[at.SCALES] + t * 4, out + t * out_stride * 4
        if kind == INT8:
            tile_shorts(2, widened, scales, matrix[at.PER], x, columns, x_scales, plan[at.TOKENS_MOST],
                        columns // GROUP, place, out_stride, bias, add)  # fmt: skip
        else:
            tile_shorts(3, widened, scales, matrix[at.PER], x, columns, x_scales, plan[at.TOKENS_MOST],
                        columns // GROUP, place, out_stride, bias, add)  # fmt: skip
        t += WIDE_TALL
    return t


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
        wide = shorts(plan[at.SHORTS] + (token * columns + group * GROUP) * 2, GROUP)
        total = np.int32(0)
        for i in range(GROUP):
            q = np.int32(x[i] * inverse + f32(128.5)) - np.int32(128)
            out[i] = np.int8(q)
            total += q
        if plan[at.SHORTS] != 0:
            for i in range(GROUP):
                wide[i] = out[i]
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
