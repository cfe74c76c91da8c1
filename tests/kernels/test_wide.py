"""Many tokens by packed bytes in 16 bits: the same bits as one token by bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt2.model import quant

pytest.importorskip("numba")
import numba

from gpt2.kernels import features, vectors, wide

TOKENS = wide.WIDE_TALL


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """(one token by bytes, TOKENS of them in 16 bits), compiled here and now as a processor without VNNI has them."""
    if not features.HAS_AVX2:
        pytest.skip("no AVX2 here")
    monkeypatch.setattr(features, "HAS_VNNI", False)
    tile_bytes, widen_weights, tile_shorts = vectors.tile_bytes, wide.widen_weights, wide.tile_shorts

    @numba.njit
    def single(kind, w, s, per, x, xs, sums, groups, out, bias):  # type: ignore[no-untyped-def]
        if kind == 2:
            tile_bytes(1, 2, w, s, per, x, groups * 64, xs, sums, TOKENS, groups, out, 16, bias, 1)
        else:
            tile_bytes(1, 3, w, s, per, x, groups * 64, xs, sums, TOKENS, groups, out, 16, bias, 1)

    @numba.njit
    def several(kind, w, s, per, x, xs, room, groups, out, bias):  # type: ignore[no-untyped-def]
        if kind == 2:
            widen_weights(2, w, groups * 64, room)
            tile_shorts(2, room, s, per, x, groups * 64, xs, TOKENS, groups, out, 16, bias, 1)
        else:
            widen_weights(3, w, groups * 64, room)
            tile_shorts(3, room, s, per, x, groups * 64, xs, TOKENS, groups, out, 16, bias, 1)

    return single, several


@pytest.mark.parametrize(("kind", "number"), [("int8", 2), ("int4", 3)])
def test_sums_are_those_of_bytes_to_the_bit(products: tuple[Any, Any], kind: str, number: int) -> None:
    dice = np.random.default_rng(0)
    for groups, group in ((4, 128), (5, 128), (5, 64), (3, 0)) if kind == "int8" else ((4, 64), (5, 64)):
        columns = 64 * groups
        packed = quant.pack(dice.standard_normal((16, columns)).astype(np.float32), kind, group)
        assert packed.scales is not None
        x = dice.integers(-127, 128, (TOKENS, columns), dtype=np.int8)
        x[0], x[1, ::2] = 127, -127  # as far as sums go
        scales = np.repeat(dice.random((3, TOKENS), dtype=np.float32), 2, axis=0)[:groups].copy()
        sums = (-128 * x.reshape(TOKENS, groups, 64).sum(-1, dtype=np.int32)).T.copy()
        bias, one = dice.standard_normal(16).astype(np.float32), np.ones((TOKENS, 16), np.float32)
        every, room, shorts = one.copy(), np.empty((columns, 16), np.int16), x.astype(np.int16)
        per = (group or columns) // 64
        weights, scaled = packed.data.ctypes.data, packed.scales.ctypes.data
        for token in range(TOKENS):
            products[0](
                number, weights, scaled, per, x[token].ctypes.data, scales.ctypes.data + 4 * token,
                sums.ctypes.data + 4 * token, groups, one[token].ctypes.data, bias.ctypes.data,
            )  # fmt: skip
        products[1](
            number, weights, scaled, per, shorts.ctypes.data, scales.ctypes.data, room.ctypes.data, groups,
            every.ctypes.data, bias.ctypes.data,
        )  # fmt: skip
        assert one.tobytes() == every.tobytes()
        floats = x.reshape(TOKENS, groups, 64) * scales.T[:, :, None]
        wanted = 1 + bias + floats.reshape(TOKENS, columns) @ quant.unpack(packed).T.astype(np.float64)
        np.testing.assert_allclose(every, wanted, rtol=1e-5, atol=1e-3)
