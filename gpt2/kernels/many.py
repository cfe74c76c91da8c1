"""Attention of a text's many new tokens where AVX2 is all there is: a page's keys, some pages' values for all of them.

These are laid out as float32 in the first cache; TOGETHER tokens are multiplied with them there. Each sum is made
number by number in the order of the pages, as for a token alone (chains.py): same bits.

N tokens, at most TOGETHER  D head_dim, padded to 16
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import features
from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel
from gpt2.kernels.chains import chain_tile, spread_rows
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, INT8, LANES
from gpt2.kernels.looks import bytes_of, first_page, page_place, put, steepness, stretch, weigh

TOGETHER = 24  # tokens
TALL = 6  # of them in a tile
SLOTS = 64  # whose values are summed at a time
ROWS = TOGETHER if features.by_floats() else 8  # tokens or heads for which a worker has room


@kernel
def spread(kind: Any, w: Any, rows: Any, out: Any) -> None:
    """`spread_rows` of a kind that is known only now."""
    if kind == FLOAT32:
        spread_rows(0, w, rows, out)
    elif kind == BFLOAT16:
        spread_rows(1, w, rows, out)
    else:
        spread_rows(2, w, rows, out)


@kernel
def tiles(n: Any, skip: Any, w: Any, x: Any, x_stride: Any, rows: Any, out: Any, out_stride: Any, add: Any) -> None:
    """out (N, 16) = or += x (N, rows) @ w (rows, 16), but for tiles of which all tokens are among the first `skip`."""
    i = skip // TALL * TALL
    while i < n:
        left, place, more = x + i * x_stride * 4, out + i * out_stride * 4, n - i
        if more >= TALL:
            chain_tile(TALL, 0, w, left, x_stride, rows, place, out_stride, add)
            i += TALL
        elif more >= 3:
            chain_tile(3, 0, w, left, x_stride, rows, place, out_stride, add)
            i += 3
        elif more == 2:
            chain_tile(2, 0, w, left, x_stride, rows, place, out_stride, add)
            i += 2
        else:
            chain_tile(1, 0, w, left, x_stride, rows, place, out_stride, add)
            i += 1


@kernel
def look_back_together(plan: Any, layer: Any, own: Any, table: Any, head: Any, n: Any, q: Any, position: Any,
                       out_row: Any, worker: Any) -> None:  # fmt: skip
    """`look_back` of one head for up to TOGETHER tokens. Near are a page's keys, then SLOTS values of 16 numbers."""
    pad, stride, kind = plan[at.HEAD_PAD], plan[at.SCORE_STRIDE], plan[at.KV_KIND]
    begin, end = first_page(own, position), (position + n - 1) // LANES + 1
    stored = bytes_of(kind) * LANES  # bytes of a row
    scores = plan[at.SCORES] + worker * ROWS * stride * 4
    scratch = plan[at.SCRATCH] + worker * ROWS * pad * 4
    near = plan[at.NEAR] + worker * max(pad, SLOTS) * LANES * 4
    for page in range(begin, end):
        unseen = min(n, max(0, page * LANES - position))  # by so many of the tokens
        place = page_place(plan, own, np.int64(table[page % own[at.TURN]]), 0, head)
        keys, out = plan[at.POOL] + place * pad * stored, scores + (page - begin) * LANES * 4
        if kind != FLOAT32:
            spread(kind, keys, pad, near)
            keys = near
        tiles(n, unseen, keys, q, plan[at.QKV_STRIDE], pad, out, stride, 0)
        if kind == INT8:
            stretch(out, stride, n, plan[at.POOL_SCALES] + place * LANES * 4)
    scale = steepness(plan, layer)
    for i in range(n):
        weigh(own, scores + i * stride * 4, (end - begin) * LANES, position + i + 1 - begin * LANES, scale)
    if kind == INT8:
        for page in range(begin, end):
            place = page_place(plan, own, np.int64(table[page % own[at.TURN]]), 1, head)
            stretch(scores + (page - begin) * LANES * 4, stride, n, plan[at.POOL_SCALES] + place * LANES * 4)
    for first in range(begin, end, SLOTS // LANES):
        unseen, count = min(n, max(0, first * LANES - position)), min(SLOTS // LANES, end - first)
        weights = scores + (first - begin) * LANES * 4
        for chunk in range(pad // LANES):
            for page in range(count):
                place = page_place(plan, own, np.int64(table[(first + page) % own[at.TURN]]), 1, head)
                values = plan[at.POOL] + (place * pad + chunk * LANES) * stored
                spread(kind, values, LANES, near + page * LANES * LANES * 4)
            out = scratch + chunk * LANES * 4
            tiles(n, unseen, near, weights, stride, count * LANES, out, pad, min(first - begin, 1))
    for i in range(n):
        put(plan, scratch + i * pad * 4, out_row + i, head)
