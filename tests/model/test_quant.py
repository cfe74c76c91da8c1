"""The packed forms of matrices, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt2.errors import UserError
from gpt2.model import quant

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 150))
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays.arrays(np.float32, SHAPES, elements=FINITE)
TINY = 2.0**-118  # below, a step may lie beneath float32's normal numbers


def bfloat16_by_torch(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()


@given(arrays.arrays(np.float32, st.integers(1, 64), elements=st.floats(width=32)))
def test_bfloat16_is_torchs(values: np.ndarray) -> None:
    ours, theirs = quant.to_bfloat16(values), bfloat16_by_torch(values)
    number = ~np.isnan(values)
    assert np.array_equal(ours[number], theirs[number])
    assert np.isnan(quant.from_bfloat16(ours)[~number]).all()


def test_bfloat16_halves_go_to_the_even_neighbour() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)  # half way between 1, 1 + 2^-7, 1 + 2^-6
    assert quant.from_bfloat16(quant.to_bfloat16(values)).tolist() == [1.0, 1 + 2**-6, -1.0]


@given(MATRICES)
def test_float32_comes_back_as_it_was(matrix: np.ndarray) -> None:
    assert np.array_equal(quant.unpack(quant.pack(matrix, "float32")), matrix)


@given(MATRICES)
def test_bfloat16_comes_back_rounded(matrix: np.ndarray) -> None:
    bits = quant.to_bfloat16(matrix)
    assert np.array_equal(quant.to_bfloat16(quant.unpack(quant.pack(matrix, "bfloat16"))), bits)


@given(MATRICES, st.sampled_from([0, 64, 128]))
def test_int8_is_off_by_no_more_than_half_a_step(matrix: np.ndarray, group: int) -> None:
    back = quant.unpack(quant.pack(matrix, "int8", group))
    width = group or matrix.shape[1]
    for start in range(0, matrix.shape[1], width):
        part, restored = matrix[:, start : start + width].astype(np.float64), back[:, start : start + width]
        top = np.abs(part).max(axis=1, keepdims=True)
        step = np.maximum(top / 127 * (1 + 2**-8), TINY)
        assert (np.abs(part - restored) <= 0.5001 * step + top * 2**-8).all()


@given(MATRICES)
def test_int4_is_no_worse_than_the_largest_weight_divided_by_eight(matrix: np.ndarray) -> None:
    back = quant.unpack(quant.pack(matrix, "int4")).astype(np.float64)
    for start in range(0, matrix.shape[1], quant.CHUNK):
        part = matrix[:, start : start + quant.CHUNK].astype(np.float64)
        top = np.take_along_axis(part, np.abs(part).argmax(axis=1)[:, None], axis=1)
        step = np.where(top == 0, 1, -top / 8)
        plain = (part / step).round().clip(-8, 7) * step
        error, bound = np.square(part - back[:, start : start + quant.CHUNK]).sum(1), np.square(part - plain).sum(1)
        assert (error <= 1.02 * bound + np.square(top[:, 0]) * 1e-3 + TINY).all()


def test_int4_of_normal_weights_has_a_known_error() -> None:
    matrix = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    error = np.square(quant.unpack(quant.pack(matrix, "int4")) - matrix).mean() ** 0.5
    assert error == pytest.approx(0.090, abs=0.001)  # 0.108 with the largest weight divided by 7 and no search


def test_int8_numbers_and_scales_lie_where_the_kernels_read_them() -> None:
    matrix = np.random.default_rng(1).standard_normal((21, 200)).astype(np.float32)
    packed = quant.pack(matrix, "int8", group=64)
    assert packed.data.shape == (2, 64, 16, 4) and packed.scales is not None and packed.scales.shape == (2, 4, 16)
    for row, column in [(0, 0), (3, 7), (17, 64), (20, 199)]:
        step = quant.from_bfloat16(packed.scales[row // 16, column // 64, row % 16])
        number = int(packed.data[row // 16, column // 4, row % 16, column % 4]) - 128
        assert number == np.rint(matrix[row, column] / step)
    assert (packed.data[1, :, 5:] == 128).all() and (packed.data[:, 50:] == 128).all()
    assert (packed.scales[1, :, 5:] == 0).all()


def test_int4_numbers_and_scales_lie_where_the_kernels_read_them() -> None:
    matrix = np.random.default_rng(1).standard_normal((21, 200)).astype(np.float32)
    packed = quant.pack(matrix, "int4")
    assert packed.data.shape == (2, 4, 8, 16, 4) and packed.scales is not None and packed.scales.shape == (2, 4, 16)
    for row, column in [(0, 0), (3, 7), (17, 64), (20, 199), (2, 45)]:
        step = quant.from_bfloat16(packed.scales[row // 16, column // 64, row % 16])
        half, rest = divmod(column % 64, 32)
        byte = int(packed.data[row // 16, column // 64, rest // 4, row % 16, rest % 4])
        assert (byte >> 4 * half & 15) - 8 == np.rint(np.clip(matrix[row, column] / step, -8, 7))
    assert (packed.data[1, :, :, 5:] == 0x88).all() and (packed.scales[1, :, 5:] == 0).all()


@pytest.mark.parametrize("kind", quant.KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 3e-39, 1e-37, 3.4e38, -3.4e38])
def test_zeros_and_extremes_survive(kind: str, value: float) -> None:
    matrix = np.full((3, 70), value, np.float32)
    matrix[1, 5] = -matrix[1, 5]
    matrix[2] = 0
    back = quant.unpack(quant.pack(matrix, kind)).astype(np.float64)
    assert np.isfinite(back).all() or (kind == "bfloat16" and abs(value) > 3.39e38)
    coarse = 0.15 if kind == "int4" else 0.01
    assert (np.abs(back - matrix) <= coarse * np.abs(matrix) + TINY)[np.isfinite(back)].all()


def test_packed_arrays_begin_on_a_cache_line() -> None:
    for kind in quant.KINDS:
        packed = quant.pack(np.ones((5, 5), np.float32), kind)
        assert packed.data.ctypes.data % 64 == 0 and packed.data.flags.c_contiguous
        assert packed.scales is None or packed.scales.ctypes.data % 64 == 0


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        quant.pack(np.array([[np.nan]], np.float32), "int8")
    with pytest.raises(UserError, match="multiple of 64"):
        quant.pack(np.ones((1, 1), np.float32), "int8", group=32)
