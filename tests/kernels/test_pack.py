"""The fast packing writes the oracle's bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt2.model import quant

pytest.importorskip("numba")
from gpt2.kernels import pack

CLIPS = np.array(quant.CLIPS)
KINDS = pytest.mark.parametrize("kind", quant.KINDS)


def fast(matrix: np.ndarray, kind: str, group: int = 128, threads: int = 2) -> quant.Packed:
    packed = quant.empty(*matrix.shape, kind, group)
    packed.data.view(np.uint8)[:] = 0xAB  # what memory may hold
    if packed.scales is not None:
        packed.scales[:] = 0xABAB
    assert pack.pack(matrix, kind, packed.data, packed.scales, packed.group, CLIPS, threads)
    return packed


def assert_same(ours: quant.Packed, oracle: quant.Packed) -> None:
    assert np.array_equal(ours.data.view(np.uint8), oracle.data.view(np.uint8))
    if oracle.scales is not None:
        assert ours.scales is not None and np.array_equal(ours.scales, oracle.scales)


@KINDS
@pytest.mark.parametrize("shape", [(1, 1), (15, 63), (16, 64), (17, 65), (48, 200), (100, 320)])
def test_the_bytes_are_the_oracles(kind: str, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_t(3, shape).astype(np.float32)
    matrix[:: max(1, shape[0] // 3)] *= 1e-3
    oracle = quant.pack(matrix, kind)
    for view in (matrix, np.ascontiguousarray(matrix.T).T, np.repeat(matrix, 2, axis=1)[:, ::2]):
        assert_same(fast(view, kind), oracle)
    assert_same(fast(matrix, kind, threads=1), oracle)


@KINDS
@settings(max_examples=60)
@given(
    matrix=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 33), st.integers(1, 140)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    group=st.sampled_from([0, 64, 128]),
)
def test_they_are_for_any_finite_numbers(kind: str, matrix: np.ndarray, group: int) -> None:
    assert_same(fast(matrix, kind, group), quant.pack(matrix, kind, group))


@KINDS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(kind: str, bad: float) -> None:
    matrix = np.ones((40, 100), np.float32)
    matrix[37, 99] = bad
    packed = quant.empty(40, 100, kind)
    assert not pack.pack(matrix, kind, packed.data, packed.scales, packed.group, CLIPS)
