"""Attention over keys and values in pages of 16 tokens.

A layer's row of LAYER_TABLE, `own` below, says where its pages begin in the pool and what its tokens see: WINDOW tokens
back, themselves among them (0: all), of these each STRIDE-th. In a banded layer a text's pages are a ring: its token at
position p lies on the page p // 16 modulo TURN of its table, and only the pages of the window are gone through.

T tokens  D head_dim, padded to 16  P pages
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel
from gpt2.kernels.formats import narrow
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, INT8, LANES
from gpt2.kernels.matrices import float_tile, tile_size
from gpt2.kernels.scalars import exp, floats, halves, highest, ints, largest, signed, words
from gpt2.kernels.words import atomic_add, prefetch

f32 = np.float32
ONE = f32(1.0)


@kernel
def page_place(plan: Any, own: Any, page: Any, which: Any, head: Any) -> Any:
    """Which (page, keys or values, head) of the pool."""
    return ((own[at.FIRST_PAGE] + page) * 2 + which) * plan[at.HEADS] + head


@kernel
def remember(plan: Any, own: Any, page: Any, head: Any, slot: Any, k: Any, v: Any) -> None:
    """Write one token's key and value of a head: keys (D, 16 slots), values (D / 16, 16 slots, 16).

    In bfloat16 two d of a key lie side by side, and two slots of a value: (D / 2, 16, 2) and (D / 16, 8, 16, 2).
    """
    half = plan[at.HEAD_PAD] * LANES
    key, value = page_place(plan, own, page, 0, head), page_place(plan, own, page, 1, head)
    if plan[at.KV_KIND] == FLOAT32:
        keys, values = floats(plan[at.POOL] + key * half * 4, half), floats(plan[at.POOL] + value * half * 4, half)
        for d in range(k.size):
            keys[d * LANES + slot] = k[d]
            values[(d // LANES * LANES + slot) * LANES + d % LANES] = v[d]
    elif plan[at.KV_KIND] == BFLOAT16:
        key_bits, value_bits = (
            halves(plan[at.POOL] + key * half * 2, half),
            halves(plan[at.POOL] + value * half * 2, half),
        )
        for d in range(k.size):
            key_bits[(d // 2 * LANES + slot) * 2 + d % 2] = narrow(k[d])
            place = d // LANES * LANES * LANES + (slot // 2 * LANES + d % LANES) * 2 + slot % 2
            value_bits[place] = narrow(v[d])
    else:
        scales = floats(plan[at.POOL_SCALES], 1 << 40)
        scales[key * LANES + slot] = to_bytes(k, signed(plan[at.POOL] + key * half, half), slot, LANES, LANES * LANES)
        scales[value * LANES + slot] = to_bytes(
            v, signed(plan[at.POOL] + value * half, half), slot * LANES, 1, LANES * LANES
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
    width, stride = plan[at.HEAD_DIM], plan[at.QKV_STRIDE]
    own = words(plan[at.LAYER_TABLE] + layer * at.LAYER_WIDTH * 8, at.LAYER_WIDTH)
    pages = span[at.RING_PAGES] if own[at.WINDOW] > 0 else span[at.PAGES]
    table = ints(plan[at.PAGE_TABLE] + pages * 4, 1 << 40)
    all_heads = plan[at.HEADS] * width
    for i in range(span[at.COUNT]):
        row = plan[at.QKV] + (span[at.FIRST] + i) * stride * 4
        position = span[at.START] + i
        page = np.int64(table[position // LANES % own[at.TURN]])
        for h in range(head, head + heads):
            k, v = (
                floats(row + (all_heads + h * width) * 4, width),
                floats(row + (2 * all_heads + h * width) * 4, width),
            )
            remember(plan, own, page, h, position % LANES, k, v)
    first = plan[at.QKV] + (span[at.FIRST] + span[at.COUNT] - queries) * stride * 4
    position = span[at.START] + span[at.COUNT] - queries
    if queries == 1:  # the heads' keys lie one behind the other: read them so
        look_back(plan, layer, own, table, head, heads, 1, first + head * width * 4, position, out_first, worker)
        return
    for h in range(head, head + heads):
        done = 0
        while done < queries:
            m = tile_size(queries - done, FLOAT32)
            q = first + (done * stride + h * width) * 4
            look_back(plan, layer, own, table, h, 1, m, q, position + done, out_first + done, worker)
            done += m


@kernel
def look_back(plan: Any, layer: Any, own: Any, table: Any, head: Any, heads: Any, m: Any, q: Any, position: Any,
              out_row: Any, worker: Any) -> None:  # fmt: skip
    """softmax(q k') v: of one head for m tokens that follow one another, the first of them at `position`.

    Or of up to 8 heads for one token; the buffers have a row for each token or head.
    """
    pad, width, stride = plan[at.HEAD_PAD], plan[at.HEAD_DIM], plan[at.SCORE_STRIDE]
    begin = max(0, position + 1 - own[at.WINDOW]) // LANES if own[at.WINDOW] > 0 else 0  # the first page that is seen
    end, rows = (position + m - 1) // LANES + 1, m * heads
    pages = end - begin
    scores = plan[at.SCORES] + worker * 8 * stride * 4
    scratch = plan[at.SCRATCH] + worker * 8 * pad * 4
    weights = plan[at.WEIGHTS] + worker * 8 * stride * 2
    short = plan[at.KV_KIND] == BFLOAT16
    q_stride, head_stride = plan[at.QKV_STRIDE], width * 4
    if short:  # the scratch holds the queries until the values are summed there
        for i in range(rows):
            row = floats(q + (i * width if heads > 1 else i * q_stride) * 4, pad)
            out = halves(scratch + i * pad * 2, pad)
            for d in range(pad):
                out[d] = narrow(row[d])
        q, q_stride, head_stride = scratch, pad, pad * 2
    score(plan, own, table, begin, end, head, heads, m, q, q_stride, head_stride, scores)
    scale = ONE / np.sqrt(f32(width))
    if plan[at.BY_LAYER]:
        scale /= f32(layer + 1)
    for i in range(rows):
        weigh(own, scores + i * stride * 4, pages * LANES, position + i % m + 1 - begin * LANES, scale)
        if short:
            row = floats(scores + i * stride * 4, pages * LANES)
            out = halves(weights + i * stride * 2, pages * LANES)
            for t in range(pages * LANES):
                out[t] = narrow(row[t])
    sum_values(plan, own, table, begin, end, head, heads, m, weights if short else scores, scratch)
    for i in range(rows):
        found = floats(scratch + i * pad * 4, width)
        place = (out_row + i % m) * plan[at.ATTENTION_PAD] + (head + i // m) * width
        out = floats(plan[at.HEAD_OUT] + place * 4, width)
        for d in range(width):
            out[d] = found[d]


@kernel
def score(plan: Any, own: Any, table: Any, begin: Any, end: Any, head: Any, heads: Any, m: Any, q: Any, q_stride: Any,
          head_stride: Any, scores: Any) -> None:  # fmt: skip
    """q k' of m tokens, or heads, with all that lies in the pages."""
    kind, pad, stride = plan[at.KV_KIND], plan[at.HEAD_PAD], plan[at.SCORE_STRIDE]
    half = pad * LANES * (4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1)
    turn = own[at.TURN]
    following = np.int64(table[begin % turn])
    for page in range(begin, end):
        number = following
        if page + 1 < end:
            following = np.int64(table[(page + 1) % turn])
        prefetch(plan[at.POOL] + page_place(plan, own, following, 0, head) * half, heads * half // 64)
        prefetch(plan[at.POOL] + page_place(plan, own, number, 1, head) * half, heads * half // 64)
        for h in range(heads):
            place = page_place(plan, own, number, 0, head + h)
            out = scores + (h * stride + (page - begin) * LANES) * 4
            float_tile(
                m,
                kind,
                plan[at.POOL] + place * half,
                q + h * head_stride,
                q_stride,
                pad,
                out,
                stride,
                plan[at.ZEROS],
                0,
            )
            if kind == INT8:
                stretch(out, stride, m, plan[at.POOL_SCALES] + place * LANES * 4)


@kernel
def sum_values(
    plan: Any, own: Any, table: Any, begin: Any, end: Any, head: Any, heads: Any, m: Any, weights: Any, out: Any
) -> None:
    """out (M, D) = the values in the pages, by the weights (M, slots) of m tokens, or heads."""
    kind, pad, stride = plan[at.KV_KIND], plan[at.HEAD_PAD], plan[at.SCORE_STRIDE]
    size, step = 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1, 2 if kind == BFLOAT16 else 4
    for page in range(begin, end):
        number = np.int64(table[page % own[at.TURN]])
        for h in range(heads):
            place = page_place(plan, own, number, 1, head + h)
            row = weights + (h * stride + (page - begin) * LANES) * step
            if kind == INT8:
                stretch(row, stride, m, plan[at.POOL_SCALES] + place * LANES * 4)
            for chunk in range(pad // LANES):
                values = plan[at.POOL] + (place * pad + chunk * LANES) * LANES * size
                target = out + (h * pad + chunk * LANES) * 4
                float_tile(m, kind, values, row, stride, LANES, target, pad, plan[at.ZEROS], min(page - begin, 1))


@kernel
def stretch(rows: Any, stride: Any, m: Any, scales: Any) -> None:
    """Multiply 16 numbers of m rows by the 16 scales of a page of bytes."""
    scale = floats(scales, LANES)
    for i in range(m):
        row = floats(rows + i * stride * 4, LANES)
        for lane in range(LANES):
            row[lane] *= scale[lane]


@kernel
def weigh(own: Any, scores: Any, size: Any, count: Any, scale: Any) -> None:
    """Scores -> weights, of one token: `size` slots, it is the last of the first `count`; zeros where it does not look.

    What lies behind the slots takes part in a banded layer's sum, as zeros: the row has room for 16 more.
    """
    row = floats(scores, size)
    if own[at.STRIDE] > 1:
        squeezed_softmax(row, count, own[at.STRIDE], scale)
    elif 0 < own[at.WINDOW] < count:
        hidden = count - own[at.WINDOW]
        row[:hidden] = f32(0.0)
        softmax(floats(scores + hidden * 4, size + LANES - hidden), own[at.WINDOW], scale)
    else:
        softmax(row, count, scale)


@kernel
def squeezed_softmax(row: Any, count: Any, stride: Any, scale: Any) -> None:
    """The same over each stride-th slot back from the last: they are moved together and back, each past those done."""
    first, seen = (count - 1) % stride, (count - 1) // stride + 1
    for i in range(seen):
        row[i] = row[first + i * stride]
    softmax(row, seen, scale)
    for i in range(seen - 1, -1, -1):
        weight = row[i]
        row[i] = f32(0.0)
        row[first + i * stride] = weight


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
    last = layer == plan[at.LAYERS] - 1
    heads = min(8, -(-plan[at.HEADS] // plan[at.WORKERS]))
    parts = -(-plan[at.HEADS] // heads)
    ticket = plan[at.TICKETS] + layer * at.LINE * 8
    while True:
        item = atomic_add(ticket, 1)
        if item >= plan[at.SPANS] * parts:
            return
        span = words(plan[at.SPAN_TABLE] + item // parts * at.SPAN_WIDTH * 8, at.SPAN_WIDTH)
        head = item % parts * heads
        count = min(heads, plan[at.HEADS] - head)
        if last:
            attend(plan, layer, span, head, count, span[at.WANTED], span[at.FIRST_OUTPUT], worker)
        else:
            attend(plan, layer, span, head, count, span[at.COUNT], span[at.FIRST], worker)
