"""The peak that shares are shares of is that of the faster products."""

from __future__ import annotations

import pytest

from gpt2 import hardware
from gpt2.kernels import peak
from gpt2.kernels.peak import device_peak


@pytest.mark.parametrize(
    ("ours", "own", "device", "dtype", "expected"),
    [
        (True, 9.0, "cpu", "float32", 9.0),
        (True, 5.0, "cpu", "float32", 7.0),
        (True, 9.0, "cpu", "bfloat16", 7.0),
        (True, 9.0, "cuda", "float32", 7.0),
        (False, 9.0, "cpu", "float32", 7.0),
    ],
)
def test_the_faster_products_count_where_they_train(
    monkeypatch: pytest.MonkeyPatch, ours: bool, own: float, device: str, dtype: str, expected: float
) -> None:
    monkeypatch.setattr(hardware, "device_peak", lambda device, dtype: 7.0)
    monkeypatch.setattr(peak, "_ours", lambda: ours)
    monkeypatch.setattr(peak, "_own_rate", lambda: own)
    assert device_peak.__wrapped__(device, dtype) == expected


def test_our_products_have_a_rate_of_the_right_order() -> None:
    if not peak._ours():
        pytest.skip("float32 is not trained in by kernels of ours here")
    assert 1e9 < peak._own_rate(seconds=0) < 1e15
