"""A whole step of GPT-2 on a processor: every worker thread runs `forward` over its share, with barriers between.

All numbers that steer it lie in one table of 64-bit integers, `plan`: sizes, addresses of buffers, of matrices and of
what the step reads. The constants below name its fields. Bits do not depend on how the work is shared: a matrix's rows
and a sequence's heads are each one worker's, and the order of every sum is fixed.

    T tokens of the step, of all sequences  C width  K columns, padded to 64  D head_dim, padded to 16  P pages
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numba
import numpy as np
from numba import types

from gpt2.kernels.cache import kernel
from gpt2.kernels.survey import BLOCK, survey
from gpt2.kernels.vectors import (
    BFLOAT16,
    FLOAT32,
    GROUP,
    INT4,
    INT8,
    LANES,
    as_bits,
    as_float,
    atomic_add,
    atomic_load,
    atomic_store,
    pause,
    pointer,
    prefetch,
    tile_bytes,
    tile_float,
    tile_halves,
)

f32 = np.float32
once = numba.njit(inline="always", error_model="numpy")  # for kernels with one caller, else compiled twice

# Fields of the plan. First the model's shape and buffers, fixed; then what each step sets.
(
    LAYERS, HEADS, HEAD_DIM, HEAD_PAD, WIDTH, WIDTH_PAD, ATTENTION_PAD, INNER_PAD, QKV_STRIDE, LOGIT_STRIDE,
    BY_LAYER, ERF, EPSILON, SHORT, KV_KIND, POOL_PAGES, TILE_BYTES,
    MATRICES, NORMS, POSITION, POOL, POOL_SCALES, ZEROS,
    X, NORM, QKV, HEAD_OUT, MLP, LOGITS, BYTES, SCALES, SUMS, TOKENS_MOST, SCORES, SCORE_STRIDE, WEIGHTS, SCRATCH,
    VOCABULARY, PEAKS, TOPS, NORMALISERS, SUMS_OF_BLOCKS,
    TOKENS, TOKEN_IDS, POSITIONS, SPANS, SPAN_TABLE, PAGE_TABLE, OUTPUTS, OUTPUT_TOKENS,
    WORKERS, BARRIER, ABORT, CALL, TICKETS, WAITS, PARKED, FIELDS,
) = range(58)  # fmt: skip
KIND, DATA, SCALE, PER, BIAS, BLOCKS, COLUMNS, MATRIX_WIDTH = range(8)
FIRST, COUNT, START, PAGES, WANTED, FIRST_OUTPUT, SPAN_WIDTH = range(7)
LINE = 8  # 64-bit numbers in a cache line: counters that several cores write stand so far apart
ONE = f32(1.0)
GELU_A = f32(2.0 * math.sqrt(2.0 / math.pi))  # gelu_tanh(x) = x sigmoid(A (x + B x^3)), Hendrycks & Gimpel 2016
GELU_B = f32(0.044715)
SPINS = 1024  # waiting rounds (about 35 microseconds) before the processor is offered to others
PATIENCE = 400_000  # such offers before a worker counts as lost: ten seconds and more

_yield_processor = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


@kernel
def floats(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.float32)


@kernel
def words(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int64)


@kernel
def ints(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int32)


@kernel
def halves(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.uint16)


@kernel
def signed(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.int8)


@kernel
def unsigned(address: Any, count: Any) -> Any:
    return numba.carray(pointer(address), count, np.uint8)


@kernel
def widen(half: Any) -> Any:
    """bfloat16 bits -> float32, exact."""
    return as_float(np.uint32(np.uint32(half) << np.uint32(16)))


@kernel
def narrow(value: Any) -> Any:
    """float32 -> bfloat16 bits, to the nearest, ties to even."""
    bits = as_bits(f32(value))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@kernel
def largest(x: Any, count: Any) -> Any:
    """The largest absolute number of x[:count]. As whole numbers, in whose maximum no NaN hinders vectors."""
    top = np.int32(0)
    for i in range(count):
        top = max(top, np.int32(as_bits(x[i]) & np.uint32(0x7FFFFFFF)))
    return as_float(np.uint32(top))


@kernel
def highest(x: Any, count: Any) -> Any:
    """The maximum of x[:count], likewise: a float's bits are in order, but for negative ones, whose lower bits turn."""
    top = np.int32(-0x80000000)
    for i in range(count):
        bits = np.int32(as_bits(x[i]))
        top = max(top, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return as_float(np.uint32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@kernel
def exp(x: Any) -> Any:
    """exp to about 2e-7 relative: a power of two times a polynomial, arithmetic that LLVM turns into vectors."""
    z = min(max(x, f32(-87.0)), f32(88.0)) * f32(1.4426950408889634)
    n = np.floor(z + f32(0.5))
    r = z - n
    p = f32(1.5252734e-5)
    p = p * r + f32(1.5403530e-4)
    p = p * r + f32(1.3333558e-3)
    p = p * r + f32(9.6181291e-3)
    p = p * r + f32(5.5504109e-2)
    p = p * r + f32(2.4022651e-1)
    p = p * r + f32(6.9314718e-1)
    p = p * r + f32(1.0)
    return p * as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@kernel
def share(count: Any, worker: Any, workers: Any) -> Any:
    """The part of range(count) that is this worker's."""
    return count * worker // workers, count * (worker + 1) // workers


@kernel
def barrier(plan: Any) -> Any:
    """Wait for all workers; True if the step is given up."""
    workers = plan[WORKERS]
    if workers == 1:
        return False
    place, abort = plan[BARRIER], plan[ABORT]
    mine = atomic_add(place, 1)
    target = (mine // workers + 1) * workers
    spins = 0
    while atomic_load(place) < target:
        spins += 1
        pause()
        if spins % SPINS == 0:
            _yield_processor()
            atomic_add(plan[WAITS], 1)
            if atomic_load(abort) != 0 or spins > SPINS * PATIENCE:
                atomic_store(abort, 1)
                return True
    return False


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
    matrix = words(plan[MATRICES] + index * MATRIX_WIDTH * 8, MATRIX_WIDTH)
    kind, columns = matrix[KIND], matrix[COLUMNS]
    first, last = share(matrix[BLOCKS], worker, plan[WORKERS])
    groups = columns // GROUP
    if kind == INT8:
        block_bytes, scale_bytes = columns * LANES, -(-groups // matrix[PER]) * LANES * 2
    elif kind == INT4:
        block_bytes, scale_bytes = columns * LANES // 2, groups * LANES * 2
    else:
        block_bytes, scale_bytes = columns * LANES * (4 if kind == FLOAT32 else 2), 0
    row_bytes = columns * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    rows = x if kind == FLOAT32 else plan[BYTES]
    batch = max(8, plan[TILE_BYTES] // row_bytes // 8 * 8)  # tokens whose activations stay in the second cache
    for begin in range(0, tokens, batch):
        end = min(tokens, begin + batch)
        for block in range(first, last):
            w = matrix[DATA] + block * block_bytes
            scales = matrix[SCALE] + block * scale_bytes
            bias = matrix[BIAS] + block * LANES * 4
            t = begin
            while t < end:
                m = tile_size(end - t)
                place = out + (t * out_stride + block * LANES) * 4
                if kind <= BFLOAT16:
                    float_tile(m, kind, w, rows + t * row_bytes, columns, columns, place, out_stride, bias, add)
                else:
                    byte_tile(m, kind, w, scales, matrix[PER], rows + t * columns, columns,
                              plan[SCALES] + t * 4, plan[SUMS] + t * 4, plan[TOKENS_MOST], groups,
                              place, out_stride, bias, add)  # fmt: skip
                t += m


@kernel
def shorten(plan: Any, row: Any, token: Any, columns: Any, first: Any, last: Any) -> None:
    """Groups first to last of a token's row of floats -> the form that the weights are multiplied with, in BYTES.

    They begin and end with a pair of groups.
    """
    if plan[SHORT] == BFLOAT16:
        x = floats(row, columns)
        out = halves(plan[BYTES] + token * columns * 2, columns)
        for i in range(first * GROUP, last * GROUP):
            out[i] = narrow(x[i])
    elif plan[SHORT] == INT8:
        for group in range(first, last, 2):
            quantise(plan, row, token, columns, group, min(group + 2, last))


@kernel
def quantise(plan: Any, row: Any, token: Any, columns: Any, first: Any, last: Any) -> None:
    """A pair of groups (or the one that is left) as bytes: the scale that they share, and -128 times each one's sum."""
    scales, sums = floats(plan[SCALES], 1 << 40), ints(plan[SUMS], 1 << 40)
    top = largest(floats(row + first * GROUP * 4, (last - first) * GROUP), (last - first) * GROUP)
    inverse = f32(127.0) / top if top > f32(0.0) else f32(0.0)
    for group in range(first, last):
        x = floats(row + group * GROUP * 4, GROUP)
        out = signed(plan[BYTES] + token * columns + group * GROUP, GROUP)
        total = np.int32(0)
        for i in range(GROUP):
            q = np.int32(x[i] * inverse + f32(128.5)) - np.int32(128)
            out[i] = np.int8(q)
            total += q
        scales[group * plan[TOKENS_MOST] + token] = top / f32(127.0)
        sums[group * plan[TOKENS_MOST] + token] = total * np.int32(-128)


@kernel
def shorten_all(plan: Any, x: Any, columns: Any, tokens: Any, worker: Any) -> None:
    """x (T, K) -> BYTES; pairs of groups of all tokens are shared out."""
    groups = columns // GROUP
    pairs = (groups + 1) // 2
    first, last = share(tokens * pairs, worker, plan[WORKERS])
    for item in range(first, last):
        token, group = item // pairs, item % pairs * 2
        shorten(plan, x + token * columns * 4, token, columns, group, min(group + 2, groups))


@kernel
def gelu(plan: Any, tokens: Any, worker: Any) -> None:
    """The MLP's hidden row through its non-linearity, in place, and in its short form."""
    columns = plan[INNER_PAD]
    groups = columns // GROUP
    pairs = (groups + 1) // 2
    first, last = share(tokens * pairs, worker, plan[WORKERS])
    for item in range(first, last):
        token, group = item // pairs, item % pairs * 2
        count = (min(group + 2, groups) - group) * GROUP
        row = plan[MLP] + token * columns * 4
        x = floats(row + group * GROUP * 4, count)
        if plan[ERF]:
            for i in range(count):
                x[i] = f32(0.5 * x[i] * (1.0 + math.erf(x[i] * 0.7071067811865476)))
        else:
            for i in range(count):
                v = x[i]
                x[i] = v / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v)))
        shorten(plan, row, token, columns, group, min(group + 2, groups))


@kernel
def norm(plan: Any, index: Any, tokens: Any, worker: Any) -> None:
    """Layer norm of the residual stream, this worker's tokens."""
    table = words(plan[NORMS] + index * 16, 2)
    width, columns = plan[WIDTH], plan[WIDTH_PAD]
    gain, bias = floats(table[0], width), floats(table[1], width)
    epsilon = floats(plan[EPSILON], 1)[0]
    first, last = share(tokens, worker, plan[WORKERS])
    for token in range(first, last):
        x, out = floats(plan[X] + token * columns * 4, width), floats(plan[NORM] + token * columns * 4, width)
        total = f32(0.0)
        for i in range(width):
            total += x[i]
        mean = total / f32(width)
        total = f32(0.0)
        for i in range(width):
            total += (x[i] - mean) * (x[i] - mean)
        inverse = ONE / np.sqrt(total / f32(width) + epsilon)
        for i in range(width):
            out[i] = (x[i] - mean) * inverse * gain[i] + bias[i]
        shorten(plan, plan[NORM] + token * columns * 4, token, columns, 0, columns // GROUP)


@kernel
def embed(plan: Any, worker: Any) -> None:
    """x = wte[token] + wpe[position], this worker's tokens."""
    width, columns = plan[WIDTH], plan[WIDTH_PAD]
    matrix = words(plan[MATRICES] + (4 * plan[LAYERS] + 1) * MATRIX_WIDTH * 8, MATRIX_WIDTH)
    ids, positions = ints(plan[TOKEN_IDS], plan[TOKENS]), ints(plan[POSITIONS], plan[TOKENS])
    first, last = share(plan[TOKENS], worker, plan[WORKERS])
    for token in range(first, last):
        x = floats(plan[X] + token * columns * 4, width)
        look_up(matrix, np.int64(ids[token]), x)
        place = floats(plan[POSITION] + np.int64(positions[token]) * width * 4, width)
        for i in range(width):
            x[i] += place[i]


@kernel
def look_up(matrix: Any, row: Any, out: Any) -> None:
    """out = one row of a packed matrix."""
    kind, columns, block, lane = matrix[KIND], matrix[COLUMNS], row // LANES, row % LANES
    if kind == FLOAT32:
        numbers = floats(matrix[DATA] + block * columns * LANES * 4, columns * LANES)
        for k in range(out.size):
            out[k] = numbers[k * LANES + lane]
    elif kind == BFLOAT16:
        bits = halves(matrix[DATA] + block * columns * LANES * 2, columns * LANES)
        for k in range(out.size):
            out[k] = widen(bits[(k // 2 * LANES + lane) * 2 + k % 2])
    else:
        stored = unsigned(matrix[DATA] + block * columns * LANES, columns * LANES)
        count = -(-(columns // GROUP) // matrix[PER])
        scales = halves(matrix[SCALE] + block * count * LANES * 2, count * LANES)
        for k in range(out.size):
            scale = widen(scales[k // (GROUP * matrix[PER]) * LANES + lane])
            out[k] = f32(np.int32(stored[k // 4 * 64 + lane * 4 + k % 4]) - np.int32(128)) * scale


@kernel
def page_place(plan: Any, layer: Any, page: Any, which: Any, head: Any) -> Any:
    """Which (layer, page, keys or values, head) of the pool."""
    return ((layer * plan[POOL_PAGES] + page) * 2 + which) * plan[HEADS] + head


@kernel
def remember(plan: Any, layer: Any, page: Any, head: Any, slot: Any, k: Any, v: Any) -> None:
    """Write one token's key and value of a head: keys (D, 16 slots), values (D / 16, 16 slots, 16).

    In bfloat16 two d of a key lie side by side, and two slots of a value: (D / 2, 16, 2) and (D / 16, 8, 16, 2).
    """
    half = plan[HEAD_PAD] * LANES
    key, value = page_place(plan, layer, page, 0, head), page_place(plan, layer, page, 1, head)
    if plan[KV_KIND] == FLOAT32:
        keys, values = floats(plan[POOL] + key * half * 4, half), floats(plan[POOL] + value * half * 4, half)
        for d in range(k.size):
            keys[d * LANES + slot] = k[d]
            values[(d // LANES * LANES + slot) * LANES + d % LANES] = v[d]
    elif plan[KV_KIND] == BFLOAT16:
        key_bits, value_bits = halves(plan[POOL] + key * half * 2, half), halves(plan[POOL] + value * half * 2, half)
        for d in range(k.size):
            key_bits[(d // 2 * LANES + slot) * 2 + d % 2] = narrow(k[d])
            place = d // LANES * LANES * LANES + (slot // 2 * LANES + d % LANES) * 2 + slot % 2
            value_bits[place] = narrow(v[d])
    else:
        scales = floats(plan[POOL_SCALES], 1 << 40)
        scales[key * LANES + slot] = to_bytes(k, signed(plan[POOL] + key * half, half), slot, LANES, LANES * LANES)
        scales[value * LANES + slot] = to_bytes(
            v, signed(plan[POOL] + value * half, half), slot * LANES, 1, LANES * LANES
        )


@kernel
def to_bytes(x: Any, out: Any, first: Any, step: Any, block: Any) -> Any:
    """x as signed bytes, 16 of them `step` apart, the next 16 a `block` further; returns their scale."""
    top = largest(x, x.size)
    inverse = f32(127.0) / top if top > f32(0.0) else f32(0.0)
    for d in range(x.size):
        q = np.int32(x[d] * inverse + f32(128.5)) - np.int32(128)
        out[first + d // LANES * block + d % LANES * step] = np.int8(q)
    return top / f32(127.0)


@kernel
def attend(plan: Any, layer: Any, span: Any, head: Any, heads: Any, queries: Any, out_first: Any, worker: Any) -> None:
    """Some heads of one span: remember its new keys and values, then let its last `queries` tokens look back.

    Results go to rows from `out_first` on of HEAD_OUT.
    """
    width, stride = plan[HEAD_DIM], plan[QKV_STRIDE]
    table = ints(plan[PAGE_TABLE] + span[PAGES] * 4, 1 << 40)
    all_heads = plan[HEADS] * width
    for i in range(span[COUNT]):
        row = plan[QKV] + (span[FIRST] + i) * stride * 4
        position = span[START] + i
        page = np.int64(table[position // LANES])
        for h in range(head, head + heads):
            k, v = (
                floats(row + (all_heads + h * width) * 4, width),
                floats(row + (2 * all_heads + h * width) * 4, width),
            )
            remember(plan, layer, page, h, position % LANES, k, v)
    first = plan[QKV] + (span[FIRST] + span[COUNT] - queries) * stride * 4
    position = span[START] + span[COUNT] - queries
    if queries == 1:  # the heads' keys lie one behind the other: read them so
        look_back(plan, layer, table, head, heads, 1, first + head * width * 4, position, out_first, worker)
        return
    for h in range(head, head + heads):
        done = 0
        while done < queries:
            m = tile_size(queries - done)
            q = first + (done * stride + h * width) * 4
            look_back(plan, layer, table, h, 1, m, q, position + done, out_first + done, worker)
            done += m


@kernel
def look_back(plan: Any, layer: Any, table: Any, head: Any, heads: Any, m: Any, q: Any, position: Any, out_row: Any,
              worker: Any) -> None:  # fmt: skip
    """softmax(q k') v: of one head for m tokens that follow one another, the first of them at `position`.

    Or of up to 8 heads for one token; the buffers have a row for each token or head.
    """
    pad, width, stride = plan[HEAD_PAD], plan[HEAD_DIM], plan[SCORE_STRIDE]
    pages, rows = (position + m - 1) // LANES + 1, m * heads
    scores = plan[SCORES] + worker * 8 * stride * 4
    scratch = plan[SCRATCH] + worker * 8 * pad * 4
    weights = plan[WEIGHTS] + worker * 8 * stride * 2
    short = plan[KV_KIND] == BFLOAT16
    q_stride, head_stride = plan[QKV_STRIDE], width * 4
    if short:  # the scratch holds the queries until the values are summed there
        for i in range(rows):
            row = floats(q + (i * width if heads > 1 else i * q_stride) * 4, pad)
            out = halves(scratch + i * pad * 2, pad)
            for d in range(pad):
                out[d] = narrow(row[d])
        q, q_stride, head_stride = scratch, pad, pad * 2
    score(plan, layer, table, head, heads, m, q, q_stride, head_stride, pages, scores)
    scale = ONE / np.sqrt(f32(width))
    if plan[BY_LAYER]:
        scale /= f32(layer + 1)
    for i in range(rows):
        row = floats(scores + i * stride * 4, pages * LANES)
        softmax(row, position + i % m + 1, scale)
        if short:
            out = halves(weights + i * stride * 2, pages * LANES)
            for t in range(pages * LANES):
                out[t] = narrow(row[t])
    sum_values(plan, layer, table, head, heads, m, weights if short else scores, pages, scratch)
    for i in range(rows):
        found = floats(scratch + i * pad * 4, width)
        place = (out_row + i % m) * plan[ATTENTION_PAD] + (head + i // m) * width
        out = floats(plan[HEAD_OUT] + place * 4, width)
        for d in range(width):
            out[d] = found[d]


@kernel
def score(plan: Any, layer: Any, table: Any, head: Any, heads: Any, m: Any, q: Any, q_stride: Any, head_stride: Any,
          pages: Any, scores: Any) -> None:  # fmt: skip
    """q k' of m tokens, or heads, with all that lies in the pages."""
    kind, pad, stride = plan[KV_KIND], plan[HEAD_PAD], plan[SCORE_STRIDE]
    half = pad * LANES * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    for page in range(pages):
        number, following = np.int64(table[page]), np.int64(table[min(page + 1, pages - 1)])
        prefetch(plan[POOL] + page_place(plan, layer, following, 0, head) * half, heads * half // 64)
        prefetch(plan[POOL] + page_place(plan, layer, number, 1, head) * half, heads * half // 64)
        for h in range(heads):
            place = page_place(plan, layer, number, 0, head + h)
            out = scores + (h * stride + page * LANES) * 4
            float_tile(
                m, kind, plan[POOL] + place * half, q + h * head_stride, q_stride, pad, out, stride, plan[ZEROS], 0
            )
            if kind == INT8:
                stretch(out, stride, m, plan[POOL_SCALES] + place * LANES * 4)


@kernel
def sum_values(
    plan: Any, layer: Any, table: Any, head: Any, heads: Any, m: Any, weights: Any, pages: Any, out: Any
) -> None:
    """out (M, D) = the values in the pages, by the weights (M, slots) of m tokens, or heads."""
    kind, pad, stride = plan[KV_KIND], plan[HEAD_PAD], plan[SCORE_STRIDE]
    size, step = 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1, 2 if kind == BFLOAT16 else 4
    for page in range(pages):
        number = np.int64(table[page])
        for h in range(heads):
            place = page_place(plan, layer, number, 1, head + h)
            row = weights + (h * stride + page * LANES) * step
            if kind == INT8:
                stretch(row, stride, m, plan[POOL_SCALES] + place * LANES * 4)
            for chunk in range(pad // LANES):
                values = plan[POOL] + (place * pad + chunk * LANES) * LANES * size
                target = out + (h * pad + chunk * LANES) * 4
                float_tile(m, kind, values, row, stride, LANES, target, pad, plan[ZEROS], min(page, 1))


@kernel
def stretch(rows: Any, stride: Any, m: Any, scales: Any) -> None:
    """Multiply 16 numbers of m rows by the 16 scales of a page of bytes."""
    scale = floats(scales, LANES)
    for i in range(m):
        row = floats(rows + i * stride * 4, LANES)
        for lane in range(LANES):
            row[lane] *= scale[lane]


@kernel
def softmax(row: Any, count: Any, scale: Any) -> None:
    """softmax of scale * row[:count], in place; zeros behind."""
    top = highest(row, count)
    for i in range(count):
        row[i] = exp((row[i] - top) * scale)
    row[count:] = f32(0.0)
    total = f32(0.0)
    for i in range(-(-count // LANES) * LANES):  # the same order whatever lies behind the last page
        total += row[i]
    inverse = ONE / total
    for i in range(count):
        row[i] *= inverse


@kernel
def attention(plan: Any, layer: Any, worker: Any) -> None:
    """All heads of all spans, some at a time to whoever is free; in the last layer only tokens with wanted logits."""
    last = layer == plan[LAYERS] - 1
    heads = min(8, -(-plan[HEADS] // plan[WORKERS]))
    parts = -(-plan[HEADS] // heads)
    ticket = plan[TICKETS] + layer * LINE * 8
    while True:
        item = atomic_add(ticket, 1)
        if item >= plan[SPANS] * parts:
            return
        span = words(plan[SPAN_TABLE] + item // parts * SPAN_WIDTH * 8, SPAN_WIDTH)
        head = item % parts * heads
        count = min(heads, plan[HEADS] - head)
        if last:
            attend(plan, layer, span, head, count, span[WANTED], span[FIRST_OUTPUT], worker)
        else:
            attend(plan, layer, span, head, count, span[COUNT], span[FIRST], worker)


@kernel
def keep_wanted(plan: Any) -> None:
    """Move the residual rows whose logits are wanted to the front; none is overwritten before it has moved."""
    width = plan[WIDTH]
    wanted = ints(plan[OUTPUT_TOKENS], plan[OUTPUTS])
    for row in range(plan[OUTPUTS]):
        old = floats(plan[X] + np.int64(wanted[row]) * plan[WIDTH_PAD] * 4, width)
        new = floats(plan[X] + row * plan[WIDTH_PAD] * 4, width)
        for i in range(width):
            new[i] = old[i]


@once
def survey_logits(plan: Any, worker: Any) -> None:
    """What choosing tokens needs to know of this worker's rows of logits, while they are still near."""
    vocabulary = plan[VOCABULARY]
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    first, last = share(plan[OUTPUTS], worker, plan[WORKERS])
    sums = numba.carray(pointer(plan[SUMS_OF_BLOCKS] + worker * blocks * 8), blocks, np.float64)
    normalisers = numba.carray(pointer(plan[NORMALISERS]), plan[OUTPUTS], np.float64)
    tops = floats(plan[TOPS], plan[OUTPUTS])
    for i in range(first, last):
        row = floats(plan[LOGITS] + i * plan[LOGIT_STRIDE] * 4, vocabulary)
        tops[i], normalisers[i] = survey(row, floats(plan[PEAKS] + i * blocks * 4, blocks), sums)


@once
def forward(plan: Any, worker: Any) -> bool:
    """The step that the plan describes, this worker's share of it. True if it was given up."""
    tokens = plan[TOKENS]
    embed(plan, worker)
    for layer in range(plan[LAYERS]):
        norm(plan, 2 * layer, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer, plan[NORM], tokens, plan[QKV], plan[QKV_STRIDE], 0, worker)
        if barrier(plan):
            return True
        if layer == plan[LAYERS] - 1:
            tokens = plan[OUTPUTS]
            if worker == 0:
                keep_wanted(plan)
        attention(plan, layer, worker)
        if barrier(plan):
            return True
        if tokens == 0:
            return False
        if plan[SHORT] != FLOAT32:
            shorten_all(plan, plan[HEAD_OUT], plan[ATTENTION_PAD], tokens, worker)
            if barrier(plan):
                return True
        matmul(plan, 4 * layer + 1, plan[HEAD_OUT], tokens, plan[X], plan[WIDTH_PAD], 1, worker)
        if barrier(plan):
            return True
        norm(plan, 2 * layer + 1, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer + 2, plan[NORM], tokens, plan[MLP], plan[INNER_PAD], 0, worker)
        if barrier(plan):
            return True
        gelu(plan, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer + 3, plan[MLP], tokens, plan[X], plan[WIDTH_PAD], 1, worker)
        if barrier(plan):
            return True
    norm(plan, 2 * plan[LAYERS], tokens, worker)
    if barrier(plan):
        return True
    matmul(plan, 4 * plan[LAYERS], plan[NORM], tokens, plan[LOGITS], plan[LOGIT_STRIDE], 0, worker)
    if barrier(plan):
        return True
    survey_logits(plan, worker)
    return barrier(plan)


@kernel
def take_part(plan: Any, worker: Any, seen: Any, patience: Any) -> Any:
    """Do a worker's part of steps. Returns the last call that it served, and whether that was given up.

    Worker 0 publishes the plan as the next call and does its part of it: in one piece of native code, so that no Ctrl-C
    comes between. The others do every step after call number `seen`, waiting `patience` rounds for each. Who waited in
    vain leaves a 1 in PARKED and should look again some time, as a call may have come just then.

    All in one function: compiled twice, the step would take twice as long to compile.
    """
    parked = plan[PARKED] + worker * LINE * 8
    if worker > 0:
        atomic_store(parked, 0)
    while True:
        if worker == 0:  # in one word with their number, so that nobody takes part in a step by mistake
            atomic_store(plan[CALL], ((atomic_load(plan[CALL]) >> 8) + 1) << 8 | plan[WORKERS])
        spins = 0
        while worker > 0 and atomic_load(plan[CALL]) == seen:
            pause()
            spins += 1
            if spins >= patience:
                atomic_store(parked, 1)
                return seen, False
        seen = atomic_load(plan[CALL])
        given_up = worker < seen & 255 and forward(plan, worker)
        if worker == 0 or given_up:
            return seen, given_up
