"""Texts of like length read together, so that little of a batch is padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def by_length(lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Numbers of texts, the longest first, in batches of at most `tokens` with padding, or of a single text."""
    batches: list[list[int]] = []
    for number in np.argsort(-lengths, kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens:
            batches.append([])
        batches[-1].append(number)
    return batches
