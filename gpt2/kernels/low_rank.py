"""What adapters add to a product with a packed matrix: each token is its own adapter's, or nobody's.

T tokens  K columns of the matrix, padded to 64  N its rows, padded to 16  r rank
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.kernels import plan as at
from gpt2.kernels.cache import kernel
from gpt2.kernels.lanes import LANES
from gpt2.kernels.scalars import floats, ints, share, words

f32 = np.float32


@kernel
def low_rank(plan: Any, index: Any, own: Any, x: Any, tokens: Any, out: Any, out_stride: Any, worker: Any) -> None:
    """out (T, N) += x (T, K) A' B' of each token's adapter, this worker's rows; `own` are the adapters' numbers.

    x is float32. Every worker makes all of x A' (T, r) for itself, which costs less than waiting for each other.
    """
    if own == 0:
        return
    matrix = words(plan[at.MATRICES] + index * at.MATRIX_WIDTH * 8, at.MATRIX_WIDTH)
    first, last = share(matrix[at.BLOCKS], worker, plan[at.WORKERS])
    columns, rows = matrix[at.COLUMNS], matrix[at.BLOCKS] * LANES
    numbers = ints(own, tokens)
    for t in range(tokens):
        if numbers[t] > 0:
            place = (np.int64(numbers[t]) - 1) * 4 * plan[at.LAYERS] + index
            entry = words(plan[at.ADAPTERS] + place * at.LOW_WIDTH * 8, at.LOW_WIDTH)
            rank = entry[at.RANK]
            narrow = floats(plan[at.NARROW] + worker * plan[at.NARROW_STRIDE] * 4, rank)
            row = floats(x + t * columns * 4, columns)
            for j in range(rank):
                a, total = floats(entry[at.LOW_A] + j * columns * 4, columns), f32(0.0)
                for k in range(columns):
                    total += a[k] * row[k]
                narrow[j] = total
            count = (last - first) * LANES
            target = floats(out + (t * out_stride + first * LANES) * 4, count)
            for j in range(rank):
                b = floats(entry[at.LOW_B] + (j * rows + first * LANES) * 4, count)
                for n in range(count):
                    target[n] += narrow[j] * b[n]
