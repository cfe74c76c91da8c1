"""Attention over keys and values in pages of 16 tokens.

A layer's row of LAYER_TABLE, `own` below, says where its pages begin in the pool and what its tokens see: WINDOW tokens
back, themselves among them (0: all), of these each STRIDE-th. In a banded layer a text's pages are a ring: its token at
position p lies on the page p // 16 modulo TURN of its table, and only the pages of the window are gone through.

T tokens  D head_dim, padded to 16  P pages
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import features
from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel
from gpt2.kernels.chains import chain_tile
from gpt2.kernels.formats import narrow
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, INT8, LANES
from gpt2.kernels.looks import bytes_of, first_page, page_place, put, steepness, stretch, weigh
from gpt2.kernels.many import ROWS, TOGETHER, look_back_together
from gpt2.kernels.matrices import float_tile, tile_size
from gpt2.kernels.scalars import floats, halves, ints, largest, signed, words
from gpt2.kernels.words import atomic_add, prefetch

f32 = np.float32
BY_FLOATS = features.by_floats()  # AVX2: bfloat16 is stored, never multiplied, and many tokens are taken at a time


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
            q = first + (done * stride + h * width) * 4
            if BY_FLOATS:
                m = min(TOGETHER, queries - done)
                look_back_together(plan, layer, own, table, h, m, q, position + done, out_first + done, worker)
            else:
                m = tile_size(queries - done, FLOAT32)
                look_back(plan, layer, own, table, h, 1, m, q, position + done, out_first + done, worker)
            done += m


@kernel
def look_back(plan: Any, layer: Any, own: Any, table: Any, head: Any, heads: Any, m: Any, q: Any, position: Any,
              out_row: Any, worker: Any) -> None:  # fmt: skip
    """softmax(q k') v: of one head for m tokens that follow one another, the first of them at `position`.

    Or of up to 8 heads for one token; the buffers have a row for each token or head.
    """
    pad, width, stride = plan[at.HEAD_PAD], plan[at.HEAD_DIM], plan[at.SCORE_STRIDE]
    begin, end, rows = first_page(own, position), (position + m - 1) // LANES + 1, m * heads
    pages = end - begin
    scores = plan[at.SCORES] + worker * ROWS * stride * 4
    scratch = plan[at.SCRATCH] + worker * ROWS * pad * 4
    weights = plan[at.WEIGHTS] + worker * ROWS * stride * 2
    short = plan[at.KV_KIND] == BFLOAT16 and not BY_FLOATS
    q_stride, head_stride = plan[at.QKV_STRIDE], width * 4
    if short:  # the scratch holds the queries until the values are summed there
        for i in range(rows):
            row = floats(q + (i * width if heads > 1 else i * q_stride) * 4, pad)
            out = halves(scratch + i * pad * 2, pad)
            for d in range(pad):
                out[d] = narrow(row[d])
        q, q_stride, head_stride = scratch, pad, pad * 2
    score(plan, own, table, begin, end, head, heads, m, q, q_stride, head_stride, scores)
    scale = steepness(plan, layer)
    for i in range(rows):
        weigh(own, scores + i * stride * 4, pages * LANES, position + i % m + 1 - begin * LANES, scale)
        if short:
            row = floats(scores + i * stride * 4, pages * LANES)
            out = halves(weights + i * stride * 2, pages * LANES)
            for t in range(pages * LANES):
                out[t] = narrow(row[t])
    sum_values(plan, own, table, begin, end, head, heads, m, weights if short else scores, scratch)
    for i in range(rows):
        put(plan, scratch + i * pad * 4, out_row + i % m, head + i // m)


@kernel
def page_tile(m: Any, kind: Any, w: Any, x: Any, x_stride: Any, rows: Any, out: Any, out_stride: Any, zeros: Any,
              add: Any) -> None:  # fmt: skip
    """out (M, 16) = or += x (M, rows) @ w (rows, 16) of a page; m is 1 where AVX2 is all there is."""
    if not BY_FLOATS:
        float_tile(m, kind, w, x, x_stride, rows, out, out_stride, zeros, add)
    elif kind == FLOAT32:
        chain_tile(1, 0, w, x, x_stride, rows, out, out_stride, add)
    elif kind == BFLOAT16:
        chain_tile(1, 1, w, x, x_stride, rows, out, out_stride, add)
    else:
        chain_tile(1, 2, w, x, x_stride, rows, out, out_stride, add)


@kernel
def score(plan: Any, own: Any, table: Any, begin: Any, end: Any, head: Any, heads: Any, m: Any, q: Any, q_stride: Any,
          head_stride: Any, scores: Any) -> None:  # fmt: skip
    """q k' of m tokens, or heads, with all that lies in the pages."""
    kind, pad, stride = plan[at.KV_KIND], plan[at.HEAD_PAD], plan[at.SCORE_STRIDE]
    half = pad * LANES * bytes_of(kind)
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
            page_tile(
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
    size = bytes_of(kind)
    step = 2 if kind == BFLOAT16 and not BY_FLOATS else 4
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
                page_tile(m, kind, values, row, stride, LANES, target, pad, plan[at.ZEROS], min(page - begin, 1))


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
