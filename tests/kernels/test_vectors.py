"""The innermost loops, in the form of this processor and in the plain form that every other one gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpt2.model import quant

pytest.importorskip("numba")
import numba

from gpt2.kernels import cache, features, vectors


@pytest.fixture(params=["host", "avx2", "plain"])
def tiles(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """(bytes, halves): one tile of two tokens each, compiled here and now."""
    if request.param == "avx2" and not features.HAS_AVX2:
        pytest.skip("no AVX2 here")
    if request.param != "host":
        monkeypatch.setattr(features, "HAS_VNNI", False)
        monkeypatch.setattr(features, "HAS_BF16", False)
        monkeypatch.setattr(features, "HAS_AVX2", request.param == "avx2")
    tile_bytes, tile_halves = vectors.tile_bytes, vectors.tile_halves

    @numba.njit
    def bytes_(kind, w, s, per, x, xs, sums, groups, out, bias, add):  # type: ignore[no-untyped-def]
        if kind == 2:
            tile_bytes(2, 2, w, s, per, x, groups * 64, xs, sums, 2, groups, out, 16, bias, add)
        else:
            tile_bytes(2, 3, w, s, per, x, groups * 64, xs, sums, 2, groups, out, 16, bias, add)

    @numba.njit
    def halves(w, x, pairs, out, bias):  # type: ignore[no-untyped-def]
        tile_halves(2, w, x, 2 * pairs, pairs, out, 16, bias, 0)

    yield bytes_, halves


def at(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize(
    ("kind", "number", "group"), [("int8", 2, 128), ("int8", 2, 64), ("int8", 2, 0), ("int4", 3, 64)]
)
@pytest.mark.parametrize("groups", [4, 5])
def test_bytes_are_multiplied_exactly(tiles: tuple[Any, Any], kind: str, number: int, group: int, groups: int) -> None:
    dice, columns = np.random.default_rng(0), 64 * groups
    packed = quant.pack(dice.standard_normal((16, columns)).astype(np.float32), kind, group)
    x = dice.integers(-127, 128, (2, columns), dtype=np.int8)
    x[0, :64], x[1, 64:128] = 127, -127  # as far as sums go
    scales = np.repeat(dice.random((3, 2), dtype=np.float32), 2, axis=0)[:groups].copy()
    sums = (-128 * x.reshape(2, groups, 64).sum(-1, dtype=np.int32)).T.copy()
    bias, out = dice.standard_normal(16).astype(np.float32), np.ones((2, 16), np.float32)
    per = (group or columns) // 64
    assert packed.scales is not None
    tiles[0](number, at(packed.data), at(packed.scales), per, at(x), at(scales), at(sums), groups, at(out), at(bias), 1)
    floats = x.reshape(2, groups, 64) * scales.T[:, :, None]
    wanted = 1 + bias + floats.reshape(2, columns) @ quant.unpack(packed).T.astype(np.float64)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-3)


def test_halves_are_multiplied_in_float32(tiles: tuple[Any, Any]) -> None:
    dice = np.random.default_rng(1)
    packed = quant.pack(dice.standard_normal((16, 128)).astype(np.float32), "bfloat16")
    x = quant.to_bfloat16(dice.standard_normal((2, 128)).astype(np.float32))
    bias, out = dice.standard_normal(16).astype(np.float32), np.zeros((2, 16), np.float32)
    tiles[1](at(packed.data), at(x), 64, at(out), at(bias))
    wanted = bias + quant.from_bfloat16(x).astype(np.float64) @ quant.unpack(packed).T.astype(np.float64)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_compiled_kernels_are_kept_by_what_they_are_made_of(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path))
    folder = cache.folder.__wrapped__
    first = folder()
    assert first.parent == tmp_path
    monkeypatch.setenv("GPT2_VECTORS", "plain")
    assert folder() != first
