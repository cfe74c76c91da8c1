"""Sums that go on from call to call: those of numpy; the same bits for one token and many, at once and in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
import numba

from gpt2.kernels.chains import chain_tile
from gpt2.kernels.many import TALL, spread, tiles

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
ROWS, STRIDE = 64, 70


@numba.njit
def tile(kind, w, x, rows, out, add):  # type: ignore[no-untyped-def]
    if kind == 0:
        chain_tile(1, 0, w, x, STRIDE, rows, out, 16, add)
    elif kind == 1:
        chain_tile(1, 1, w, x, STRIDE, rows, out, 16, add)
    else:
        chain_tile(1, 2, w, x, STRIDE, rows, out, 16, add)


def at(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def stored(kind: str, dice: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as they lie in a page, and their values (ROWS, 16)."""
    if kind == "int8":
        numbers = dice.integers(-127, 128, (ROWS, 16), dtype=np.int8)
        return numbers, numbers.astype(np.float32)
    values = dice.standard_normal((ROWS, 16)).astype(np.float32)
    if kind == "float32":
        return values, values
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    pairs = np.ascontiguousarray(bits.reshape(ROWS // 2, 2, 16).transpose(0, 2, 1))
    return pairs, (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_numpy_and_go_on(kind: str) -> None:
    dice = np.random.default_rng(0)
    (w, values), x = stored(kind, dice), dice.standard_normal((1, STRIDE)).astype(np.float32)
    whole, parts = np.full((1, 16), np.nan, np.float32), np.full((1, 16), np.nan, np.float32)
    tile(KINDS[kind], at(w), at(x), ROWS, at(whole), 0)
    assert np.allclose(whole, x[:, :ROWS].astype(np.float64) @ values, rtol=1e-5, atol=1e-4 * np.abs(values).max())
    step = 16 * w.nbytes // ROWS
    for n in range(ROWS // 16):
        tile(KINDS[kind], at(w) + n * step, at(x) + 64 * n, 16, at(parts), int(n > 0))
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 11, 24])
def test_many_tokens_have_the_bits_of_each_alone(kind: str, tokens: int) -> None:
    dice = np.random.default_rng(tokens)
    (w, values), x = stored(kind, dice), dice.standard_normal((tokens, STRIDE)).astype(np.float32)
    near, together = np.empty((ROWS, 16), np.float32), np.full((tokens, 16), np.nan, np.float32)
    spread(KINDS[kind], at(w), ROWS, at(near))
    assert np.array_equal(near, values)
    tiles(tokens, 0, at(near), at(x), STRIDE, ROWS, at(together), 16, 0)
    alone = np.empty_like(together)
    for i in range(tokens):
        tile(KINDS[kind], at(w), at(x[i]), ROWS, at(alone[i]), 0)
    assert np.array_equal(together, alone)


def test_tiles_of_tokens_that_see_nothing_are_left_out() -> None:
    dice = np.random.default_rng(0)
    w, x = stored("float32", dice)[0], dice.standard_normal((24, STRIDE)).astype(np.float32)
    out = np.full((24, 16), np.nan, np.float32)
    tiles(24, 2 * TALL + 1, at(w), at(x), STRIDE, ROWS, at(out), 16, 0)
    assert np.isnan(out[: 2 * TALL]).all() and not np.isnan(out[2 * TALL :]).any()
