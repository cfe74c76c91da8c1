"""What looking back on keys and values in pages is made of, for one token and for many."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, LANES
from gpt2.kernels.scalars import exp, floats, highest

f32 = np.float32
ONE = f32(1.0)


@kernel
def page_place(plan: Any, own: Any, page: Any, which: Any, head: Any) -> Any:
    """Which (page, keys or values, head) of the pool."""
    return ((own[at.FIRST_PAGE] + page) * 2 + which) * plan[at.HEADS] + head


@kernel
def bytes_of(kind: Any) -> Any:
    """A stored number's."""
    return 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1


@kernel
def first_page(own: Any, position: Any) -> Any:
    """The first page that a token sees."""
    return max(0, position + 1 - own[at.WINDOW]) // LANES if own[at.WINDOW] > 0 else 0


@kernel
def steepness(plan: Any, layer: Any) -> Any:
    """What scores are multiplied with before they become weights."""
    scale = ONE / np.sqrt(f32(plan[at.HEAD_DIM]))
    return scale / f32(layer + 1) if plan[at.BY_LAYER] else scale


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
def stretch(rows: Any, stride: Any, m: Any, scales: Any) -> None:
    """Multiply 16 numbers of m rows by the 16 scales of a page of bytes."""
    scale = floats(scales, LANES)
    for i in range(m):
        row = floats(rows + i * stride * 4, LANES)
        for lane in range(LANES):
            row[lane] *= scale[lane]


@kernel
def put(plan: Any, found: Any, row: Any, head: Any) -> None:
    """A head's result to its place in a row of HEAD_OUT."""
    width = plan[at.HEAD_DIM]
    source = floats(found, width)
    out = floats(plan[at.HEAD_OUT] + (row * plan[at.ATTENTION_PAD] + head * width) * 4, width)
    for d in range(width):
        out[d] = source[d]
