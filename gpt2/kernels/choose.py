"""numba kernels that choose tokens from rows of float32 logits, several rows a call and without the interpreter's lock.

They begin with what `survey` found. The k-th largest block maximum is a bound below which none of the k likeliest lies,
so these are found in the few blocks that reach it. A row whose answer needs more room than ROOM is left UNFINISHED, for
the plain way.

    V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt2.kernels.cache import exact
from gpt2.kernels.formats import of_rank, rank
from gpt2.kernels.survey import BLOCK, add_up, exp, find_peaks

f32, i32, i64 = np.float32, np.int32, np.int64

MOST = 512  # likeliest tokens that are looked for
ROOM = 2048  # tokens that are collected and sorted
BROKEN, UNFINISHED = -1, -2  # instead of a token: the logits are not numbers; the plain way has to choose
HOTTEST = 1e30  # temperatures above this make one number of many


@exact
def _first(row: Any, peaks: Any, top: Any) -> Any:
    """The first token whose logit is `top`."""
    for block in range(peaks.shape[0]):
        if peaks[block] == top:
            for token in range(block * BLOCK, min((block + 1) * BLOCK, row.shape[0])):
                if row[token] == top:
                    return token
    return BROKEN


@exact
def _sink(heap: Any, size: Any, place: Any) -> None:
    """Let the number at `place` down to where both below it are larger."""
    value = heap[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@exact
def _kth(values: Any, k: Any, heap: Any) -> Any:
    """The k-th largest of values, or -inf if there are not so many."""
    if k > values.shape[0]:
        return f32(-np.inf)
    heap[:k] = values[:k]
    for place in range(k // 2 - 1, -1, -1):
        _sink(heap, k, place)
    for value in values[k:]:
        if value > heap[0]:
            heap[0] = value
            _sink(heap, k, 0)
    return heap[0]


@exact
def _collect(row: Any, peaks: Any, floor: Any, temperature: Any, keys: Any) -> Any:
    """Put each token of at least `floor` into keys: sorted as whole numbers they go from the likeliest down, ties in
    the vocabulary's order. The order is that of the logits over temperature. UNFINISHED if there are too many."""
    count = 0
    for block in range(peaks.shape[0]):
        if peaks[block] < floor:
            continue
        for token in range(block * BLOCK, min((block + 1) * BLOCK, row.shape[0])):
            if row[token] >= floor:
                if count == ROOM:
                    return UNFINISHED
                value = row[token] / temperature
                order = i32(0) if value == 0 else rank(value)
                keys[count] = (~i64(order) << i64(32)) | i64(token)
                count += 1
    return count


@exact
def _token(key: Any) -> Any:
    return key & i64(0xFFFFFFFF)


@exact
def _value(key: Any) -> Any:
    return of_rank(i32(~(key >> i64(32))))


@exact
def _sort(keys: Any, count: Any) -> None:
    """Ascending, in place (Shell 1959; the gaps of Ciura 2001)."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for right in range(gap, count):
            key, place = keys[right], right
            while place >= gap and keys[place - gap] > key:
                keys[place] = keys[place - gap]
                place -= gap
            keys[place] = key


@exact
def _nucleus(weights: Any, count: Any, total: Any, p: Any) -> Any:
    """How many of the likeliest are needed to reach probability p; count + 1 if these do not reach it."""
    reached = 0.0
    for place in range(count):
        share = f32(weights[place] / total)
        reached += share
        if f32(reached) - share >= f32(p):
            return place
    return count + 1 if reached < p else count


@exact
def _weigh(keys: Any, count: Any, weights: Any) -> Any:
    """weights[:count] = exp(value - largest); their sum."""
    total = 0.0
    for place in range(count):
        weights[place] = exp(_value(keys[place]) - _value(keys[0]))
        total += weights[place]
    return total


@exact
def _draw(keys: Any, weights: Any, count: Any, number: Any) -> Any:
    """One of the first `count`, by the inverse of the cumulative distribution in the vocabulary's order."""
    total = 0.0
    for place in range(count):
        total += weights[place]
        keys[place] = (_token(keys[place]) << i64(32)) | i64(place)
    _sort(keys, count)
    reached = 0.0
    for key in keys[:count]:
        reached += weights[_token(key)]
        if reached > number * total:
            return key >> i64(32)
    return keys[count - 1] >> i64(32)


@exact
def _draw_any(row: Any, top: Any, scale: Any, sums: Any, number: Any) -> Any:
    """A token by the distribution of all, the same way."""
    target = number * add_up(row, top, scale, sums)
    reached, last = 0.0, 0
    for block in range(sums.shape[0]):
        if reached + sums[block] > target:
            for token in range(block * BLOCK, min((block + 1) * BLOCK, row.shape[0])):
                weight = exp((row[token] - top) * scale)
                reached += weight
                if weight > 0:
                    last = token
                if reached > target:
                    return token
            return last  # the block's sum was rounded up
        reached += sums[block]
    return last


@exact
def _floor(peaks: Any, top: Any, setting: Any, heap: Any) -> Any:
    """A logit below which no token can be kept: a little low, as division by the temperature may make ties."""
    temperature, top_k, top_p, min_p, _ = setting
    if top_k > 0 or top_p < 1:
        floor = f32(-np.inf)
        if top_k <= MOST:
            floor = _kth(peaks, i64(top_k) if top_k > 0 else min(MOST, (peaks.shape[0] + 1) // 2), heap)
    else:
        floor = top + f32(temperature * (math.log(min_p) - 1e-5))
    return floor - abs(floor) * f32(1e-6) if floor > -np.inf else floor


@exact
def _sample(row: Any, peaks: Any, top: Any, setting: Any, sums: Any, keys: Any, heap: Any) -> Any:
    """A token by temperature, top_k, top_p, min_p and a random number, or UNFINISHED."""
    temperature, top_k, top_p, min_p, number = setting
    if temperature > HOTTEST:
        return UNFINISHED
    if top_k == 0 and top_p >= 1 and min_p == 0:
        return _draw_any(row, top, f32(1.0 / temperature), sums, number)
    count = _collect(row, peaks, _floor(peaks, top, setting, heap), f32(temperature), keys)
    if count < 0:
        return UNFINISHED
    _sort(keys, count)
    if 0 < top_k < count:
        least = _value(keys[i64(top_k) - 1])
        while _value(keys[count - 1]) < least:
            count -= 1
    weights = np.empty(count, f32)
    total = _weigh(keys, count, weights)
    if top_p < 1:
        kept = _nucleus(weights, count, total if top_k else add_up(row, top, f32(1.0 / temperature), sums), top_p)
        if kept > count and not top_k and count < row.shape[0]:
            return UNFINISHED
        count = min(kept, count)
    while weights[count - 1] < f32(min_p):
        count -= 1
    return _draw(keys, weights, count, number)


@exact
def rows(
    logits: Any,
    surveyed: Any,
    changed: Any,
    vocab_size: Any,
    where: Any,
    settings: Any,
    tokens: Any,
) -> None:
    """Choose a token for each ask.

    logits and changed (rows, at least V) float32, C order; surveyed: peaks, tops and normalisers of all rows of logits;
    where (N, 2) int64: the row in logits, and in `changed` (what penalties made of it) or -1; settings (N, 5) float64:
    temperature (0: greedy), top_k, top_p, min_p, random number. Tokens may come out as BROKEN or UNFINISHED.
    """
    all_peaks, tops, normalisers = surveyed
    blocks = all_peaks.shape[1]
    own_peaks, sums = np.empty(blocks, f32), np.empty(blocks, np.float64)
    keys, heap = np.empty(ROOM, i64), np.empty(MOST, f32)
    for place in range(where.shape[0]):
        at, own = where[place, 0], where[place, 1]
        if not math.isfinite(normalisers[at]):
            tokens[place] = BROKEN
            continue
        row, peaks, top = logits[at, :vocab_size], all_peaks[at], tops[at]
        if own >= 0:
            row, peaks = changed[own, :vocab_size], own_peaks
            top = find_peaks(row, peaks)
        setting = (settings[place, 0], settings[place, 1], settings[place, 2], settings[place, 3], settings[place, 4])
        if setting[0] == 0:
            tokens[place] = _first(row, peaks, top)
        else:
            tokens[place] = _sample(row, peaks, top, setting, sums, keys, heap)


@exact
def likeliest(row: Any, count: Any, tokens: Any) -> Any:
    """The `count` likeliest tokens of row (V,) into tokens, best first; False if that takes more than ROOM."""
    peaks = np.empty((row.shape[0] + BLOCK - 1) // BLOCK, f32)
    keys, heap = np.empty(ROOM, i64), np.empty(MOST, f32)
    find_peaks(row, peaks)
    floor = _kth(peaks, count, heap) if count <= MOST else f32(-np.inf)
    found = _collect(row, peaks, floor, f32(1.0), keys)
    if found < count:
        return False
    _sort(keys, found)
    for place in range(count):
        tokens[place] = _token(keys[place])
    return True
