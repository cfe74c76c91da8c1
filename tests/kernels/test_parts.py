"""A block's parts as one Function each compute what norm, layers and GELU do one by one, and keep less for backward."""

from __future__ import annotations

import pytest
import torch
from kernels.test_fused import agree, floats  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels import parts

EPS = 1e-5


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("rows", "c", "f"), [((2, 33), 96, 60), ((70,), 64, 102), ((1, 1), 8, 3)])
def test_norm_and_layer(rows: tuple[int, ...], c: int, f: int, vectors: bool) -> None:
    def ours(
        x: Tensor, gain: Tensor, weight: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        a, b, d = parts.NormLinear.apply(x, gain, shift, EPS, weight, bias, 3)
        return torch.cat([a, 2 * b, d], -1)

    def plain(
        x: Tensor, gain: Tensor, weight: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        a, b, d = F.linear(F.layer_norm(x, (c,), gain, shift, EPS), weight, bias).chunk(3, -1)
        return torch.cat([a, 2 * b, d], -1)

    agree(
        ours,
        plain,
        [(*rows, c), (c,), (f, c), (c,), (f,)][: 3 + 2 * vectors],
        [1.0, 0.5, 0.3, 0.5, 0.5][: 3 + 2 * vectors],
    )


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("rows", "c", "f"), [((2, 33), 96, 130), ((130,), 64, 40), ((8,), 768, 800)])
def test_norm_and_mlp(rows: tuple[int, ...], c: int, f: int, vectors: bool) -> None:
    def ours(x: Tensor, gain: Tensor, up: Tensor, down: Tensor, *rest: Tensor) -> Tensor:
        shift, up_bias, down_bias = rest or (None, None, None)
        return parts.NormMlp.apply(x, gain, shift, EPS, up, up_bias, down, down_bias)  # type: ignore[no-any-return]

    def plain(x: Tensor, gain: Tensor, up: Tensor, down: Tensor, *rest: Tensor) -> Tensor:
        shift, up_bias, down_bias = rest or (None, None, None)
        high = F.gelu(F.linear(F.layer_norm(x, (c,), gain, shift, EPS), up, up_bias), approximate="tanh")
        return F.linear(high, down, down_bias)

    shapes = [(*rows, c), (c,), (f, c), (c, f), (c,), (f,), (c,)]
    agree(ours, plain, shapes[: 4 + 3 * vectors], [1.0, 0.5, 0.2, 0.2, 0.5, 0.5, 0.5][: 4 + 3 * vectors])


def test_pieces_that_lie_side_by_side_are_joined_without_a_copy() -> None:
    whole = torch.arange(2 * 5 * 12).view(2, 5, 12)
    again = parts.joined(whole.chunk(3, -1))
    assert torch.equal(again, whole)
    assert again.data_ptr() == whole.data_ptr()
    a, b, c = whole.chunk(3, -1)
    assert torch.equal(parts.joined((b, a, c)), torch.cat((b, a, c), -1))
    assert torch.equal(parts.joined((a, b.clone(), c)), whole)
