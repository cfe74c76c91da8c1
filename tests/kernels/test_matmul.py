"""Products of our own: float32's to bfloat16's precision, and the same bits whoever works at which part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.kernels import matmul, products
from gpt2.kernels.buffers import bits
from gpt2.kernels.features import HAS_BF16
from gpt2.kernels.tiles import COLUMNS

ROUNDING = 4e-3  # relative, of whole matrices: one rounding to 8 bits
pytestmark = pytest.mark.skipif(not HAS_BF16, reason="needs a processor that multiplies bfloat16")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.float() - wanted).norm() <= ROUNDING * wanted.norm())


# Rows that tiles and squares do not divide, pairs that 16 does not, and a sum that is cut into parts.
SHAPES = [(256, 320, 258), (274, 256, 512), (250, 64, 70), (36, 128, 4400)]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_every_form_of_the_product(m: int, n: int, k: int) -> None:
    a, b, bias = random(m, k), random(k, n), random(n)
    exact = a.float() @ b.float()
    out = torch.empty(m, n, dtype=torch.bfloat16)
    assert close(matmul.multiply(a, b, out), exact)
    assert close(matmul.multiply(a, b, out, add=True), 2 * exact)
    assert close(matmul.multiply(a, b.T.contiguous(), out, by_words=True, bias=bias), exact + bias.float())
    turned = torch.ones(n, m, dtype=torch.bfloat16)
    assert close(matmul.multiply(a, b, turned, turn=True, add=True), 1 + exact.T)
    assert close(matmul.multiply(a, b, turned, turn=True), exact.T)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_same_bits_however_the_work_is_dealt_out(m: int, n: int, k: int) -> None:
    a, b = (bits(random(*shape)) for shape in ((m, k), (k, n)))
    found = []
    for groups, parts in ((1, 1), (n // COLUMNS, 1), (1, 2)):
        out = torch.empty(m, n, dtype=torch.bfloat16)
        products.product(a, b, False, torch.zeros(n).numpy(), False, bits(out), False, groups, parts)
        found.append(out)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(("n", "c", "f"), [(256, 256, 384), (260, 384, 256), (255, 256, 320), (256, 260, 1000)])
def test_a_layers_three_products(n: int, c: int, f: int) -> None:
    """The last two shapes are torch's: an odd number of rows, widths that are no multiples of 64."""
    x, weight, grad, bias = random(n, c), random(f, c), random(n, f), random(f)
    spare = torch.empty(matmul.spare_shape(grad, x), dtype=torch.bfloat16)
    assert close(matmul.forwards(x, weight), x.float() @ weight.float().T)
    assert close(matmul.forwards(x, weight, bias), x.float() @ weight.float().T + bias.float())
    assert close(matmul.backwards(grad, weight), grad.float() @ weight.float())
    exact = grad.float().T @ x.float()
    found = matmul.weight_gradient(grad, x, spare)
    assert close(found, exact)
    assert close(matmul.weight_gradient(grad, x, spare, out=found, add=True), 2 * exact)


def test_infinities_and_nan_pass_through() -> None:
    a, b = torch.ones(256, 256).bfloat16(), torch.ones(256, 256).bfloat16()
    a[3, 7], a[200, 255] = float("inf"), float("nan")
    out = matmul.multiply(a, b, torch.empty_like(a))
    assert torch.isinf(out[3]).all() and torch.isnan(out[200]).all()
    assert torch.isfinite(out[[0, 2, 4, 199, 201]]).all()


@pytest.mark.parametrize("shape", [(64, 96), (33, 70), (1, 5), (128, 40)])
def test_transpose(shape: tuple[int, int]) -> None:
    x, out = random(*shape), torch.empty(shape[::-1], dtype=torch.bfloat16)
    products.transpose(bits(x), bits(out))
    assert torch.equal(out, x.T)
