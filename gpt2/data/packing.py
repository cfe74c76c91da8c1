"""Whole examples side by side in rows of a fixed length; which of them share a row changes nothing for any of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2.data.encoded import Encoded
from gpt2.model.config import IGNORE_INDEX


def pack(lengths: Sequence[int] | NDArray[np.int64], room: int, seed: int) -> list[list[int]]:
    """Rows of example numbers, each number once, the lengths of a row together at most `room`.

    Best fit over the examples in random order: each goes into the fullest row that has room for it. A row is so filled
    from all kinds of examples, and rows come in random order; the same seed gives the same rows. `lengths` are the
    examples' `positions`. Raises ValueError for one that is longer than the room.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    sizes = np.asarray(lengths, np.int64)[order]
    if len(sizes) and not 0 < sizes.min() <= sizes.max() <= room:
        raise ValueError(f"lengths from {sizes.min()} to {sizes.max()} do not go into rows of {room}")
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left in them
    left_over = 0  # its bit n is set where open_rows[n] is not empty: the least n from a size on is a bit operation
    for example, size in zip(order.tolist(), sizes.tolist(), strict=True):
        fitting = left_over >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                left_over ^= 1 << left
            rows[row].append(example)
        else:
            left, row = room, len(rows)
            rows.append([example])
        left -= size
        if left:
            open_rows[left].append(row)
            left_over |= 1 << left
    return [rows[row] for row in np.random.default_rng([seed, 1]).permutation(len(rows))]


def fill_row(examples: Sequence[Encoded], room: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(inputs, targets, segment_ids), each (room,): the examples one behind the other, then padding.

    Example i is segment i, its inputs all of its ids but the last; the target of each input is the id behind it in the
    example, or IGNORE_INDEX where that one is not learned. Padding is id 0, nothing learned; each is a segment of its
    own, for all of it may be longer than a context. Raises ValueError where they do not fit.
    """
    inputs = np.zeros(room, np.int64)
    targets = np.full(room, IGNORE_INDEX, np.int64)
    segment_ids = len(examples) + np.arange(room) % 2
    start = 0
    for number, example in enumerate(examples):
        end = start + example.positions
        if end > room:
            raise ValueError(f"{len(examples)} examples do not fit a row of {room}")
        inputs[start:end] = example.ids[:-1]
        targets[start:end] = np.where(example.wanted[1:], example.ids[1:], IGNORE_INDEX)
        segment_ids[start:end] = number
        start = end
    return inputs, targets, segment_ids
