"""Products in float32: exact to its precision in every form and shape, the same bits however the work is dealt out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2.kernels import features, matmul, products_float
from gpt2.kernels.buffers import bits

SHAPES = [(256, 320, 258), (1, 1, 1), (97, 33, 700), (6, 16, 384), (200, 2100, 70), (36, 128, 1300)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.double() - wanted).norm() <= 1e-6 * wanted.norm())


def check_every_form(m: int, n: int, k: int) -> None:
    a, b, bias = random(m, k), random(k, n), random(n)
    exact = a.double() @ b.double()
    for a_turned in (False, True):
        for b_turned in (False, True):
            left, right = a.T.contiguous() if a_turned else a, b.T.contiguous() if b_turned else b
            out = torch.full((m, n), float("nan"))
            matmul.multiply_floats(left, right, out, a_turned, b_turned, bias=bias)
            assert close(out, exact + bias.double())
            matmul.multiply_floats(left, right, out, a_turned, b_turned, add=True)
            assert close(out, 2 * exact + bias.double())


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_every_form_of_the_product(m: int, n: int, k: int) -> None:
    check_every_form(m, n, k)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 80), st.integers(1, 450))
def test_any_shape(m: int, n: int, k: int) -> None:
    check_every_form(m, n, k)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_same_bits_however_the_work_is_dealt_out(m: int, n: int, k: int) -> None:
    a, b, found = bits(random(m, k)), bits(random(k, n)), []
    bias, room = np.zeros(n + products_float.LANES, np.float32), products_float.room()
    for groups, even in ((1, 1), (3, 2), (2, 5)):
        out = torch.empty(m, n)
        products_float.product(a, False, b, False, bias, False, bits(out), room, groups, even)
        found.append(out)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(("n", "c", "f"), [(256, 256, 384), (255, 130, 67), (40, 64, 100)])
def test_a_layers_three_products(n: int, c: int, f: int, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "by_floats", lambda: ours)
    assert matmul.suits_floats(random(n, c), n, c, f) is (ours and min(n, c, f) >= matmul.NARROW_FLOATS)
    x, weight, grad, bias = random(n, c), random(f, c), random(n, f), random(f)
    spare = torch.empty(matmul.spare_shape(grad, x))
    assert close(matmul.forwards(x, weight), x.double() @ weight.double().T)
    assert close(matmul.forwards(x, weight, bias), x.double() @ weight.double().T + bias.double())
    assert close(matmul.backwards(grad, weight), grad.double() @ weight.double())
    exact = grad.double().T @ x.double()
    found = matmul.weight_gradient(grad, x, spare)
    assert close(found, exact)
    assert close(matmul.weight_gradient(grad, x, spare, out=found, add=True), 2 * exact)


def test_infinities_and_nan_pass_through() -> None:
    a, b = torch.ones(256, 256), torch.ones(256, 256)
    a[3, 7], a[200, 255] = float("inf"), float("nan")
    out = matmul.multiply_floats(a, b, torch.empty_like(a))
    assert torch.isinf(out[3]).all() and torch.isnan(out[200]).all()
    assert torch.isfinite(out[[0, 2, 4, 199, 201]]).all()
