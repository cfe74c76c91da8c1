"""Every fast form of sparse attention computes what attention under the mask itself computes, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels import banded, features, flex, fused, ops
from gpt2.kernels.patterns import Pattern, fold, masked_attention, unfold, visible

CLOSE = {"rtol": 0, "atol": 1e-5}
ROUNDING = 1.5e-2  # relative, of whole tensors: bfloat16 keeps 8 bits
Function = Callable[[Tensor, Tensor, Tensor], Tensor]

# (T, window, stride): bands that divide the length and that do not, lengths under the band, blocks half filled.
SHAPES = [
    (256, 64, 1), (256, 128, 1), (300, 100, 1), (200, 1, 1), (130, 65, 1), (129, 64, 1), (40, 256, 1), (1, 5, 1),
    (70, 66, 1),
    (64, 0, 8), (100, 0, 7), (5, 0, 9), (300, 0, 3), (300, 100, 3), (200, 0, 200), (400, 0, 3), (410, 300, 3),
]  # fmt: skip


def inputs(length: int, batch: int = 2, heads: int = 2, width: int = 16) -> list[Tensor]:
    dice = torch.Generator().manual_seed(length)
    return [torch.randn(batch, heads, length, width, generator=dice) for _ in range(4)]


def texts(length: int, batch: int = 2) -> Tensor:
    """Where each token's text begins, texts of random lengths, rows alike in nothing."""
    dice = torch.Generator().manual_seed(length + 1)
    starts = torch.rand(batch, length, generator=dice) < 0.03
    starts[:, 0] = True
    return torch.where(starts, torch.arange(length), 0).cummax(1).values


def results(function: Function, tensors: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    *leaves, seed = (tensor.to(torch.bfloat16).to(dtype) if dtype != torch.float64 else tensor for tensor in tensors)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    assert out.dtype == dtype
    return [out.detach(), *torch.autograd.grad(out, leaves, seed)]


@pytest.mark.parametrize(("length", "window", "stride"), SHAPES)
def test_a_mask_is_what_the_words_say(length: int, window: int, stride: int) -> None:
    index = torch.arange(length)
    seen = visible(index, index, window, stride)
    for i in range(0, length, 7):
        wanted = [j <= i and (not window or i - j < window) and (i - j) % stride == 0 for j in range(length)]
        assert seen[i].tolist() == wanted


@pytest.fixture(params=[True, False], ids=["by kernels", "without"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """float32 with the kernels that processors of AVX2 have, and without, on any processor."""
    monkeypatch.setattr(features, "by_floats", lambda: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("packed", [False, True], ids=["one text a row", "several"])
@pytest.mark.parametrize(("length", "window", "stride"), SHAPES)
def test_float32_equals_the_mask_to_1e_5(length: int, window: int, stride: int, packed: bool) -> None:
    pattern = Pattern(window, stride, texts(length) if packed else None)
    tensors = inputs(length)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, 0.0, pattern), tensors)
    found = results(lambda q, k, v: ops.causal_attention(q, k, v, 0.0, pattern), tensors)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 420), st.integers(1, 220), st.integers(1, 12), st.booleans())
def test_any_window_stride_and_length_equal_the_mask(
    kernels: bool, length: int, window: int, stride: int, packed: bool
) -> None:
    pattern = Pattern(window, stride, texts(length) if packed else None)
    tensors = inputs(length, width=16)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, 0.0, pattern), tensors)
    found = results(lambda q, k, v: ops.causal_attention(q, k, v, 0.0, pattern), tensors)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("width", [64, 24], ids=["by kernels", "without"])
@pytest.mark.parametrize("packed", [False, True], ids=["one text a row", "several"])
@pytest.mark.parametrize(("length", "window", "stride"), SHAPES)
def test_bfloat16_equals_the_mask_in_float32(length: int, window: int, stride: int, packed: bool, width: int) -> None:
    pattern = Pattern(window, stride, texts(length) if packed else None)
    tensors = inputs(length, width=width)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, 0.0, pattern), tensors)
    found = results(lambda q, k, v: ops.causal_attention(q, k, v, 0.0, pattern), tensors, torch.bfloat16)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.float() - theirs).norm() <= ROUNDING * theirs.norm() + 1e-3


@pytest.mark.usefixtures("kernels")
def test_a_models_way_of_laying_out_heads_makes_no_difference() -> None:
    q, k, v, seed = inputs(150)
    merged = torch.cat([part.transpose(1, 2).flatten(2) for part in (q, k, v)], -1)  # (B, T, 3 A), as c_attn leaves it

    def heads(x: Tensor) -> list[Tensor]:
        return [part.view(2, 150, 2, 16).transpose(1, 2) for part in x.chunk(3, -1)]

    pattern = Pattern(40)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, 0.0, pattern), [q, k, v, seed])
    leaf = merged.to(torch.bfloat16).float().requires_grad_()
    out = ops.causal_attention(*heads(leaf), 0.0, pattern)
    torch.testing.assert_close(out, wanted[0], **CLOSE)
    (grad,) = torch.autograd.grad(out, leaf, seed.to(torch.bfloat16).float())
    for ours, theirs in zip(heads(grad), wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.usefixtures("kernels")
def test_no_path_makes_scores_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole square of scores")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    for dtype in (torch.float32, torch.bfloat16):
        results(lambda q, k, v: ops.causal_attention(q, k, v, 0.0, Pattern(16)), inputs(100, width=64), dtype)
        with torch.no_grad():
            ops.causal_attention(*(part.to(dtype) for part in inputs(100)[:3]), 0.0, Pattern(16))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_band_does_not_notice_what_is_outside_of_it(dtype: torch.dtype) -> None:
    q, k, v, _ = (part.to(dtype).requires_grad_() for part in inputs(300, width=64))
    early, late = ops.causal_attention(q, k, v, 0.0, Pattern(70))[:, :, :100], slice(100, None)
    grads = torch.autograd.grad(early.float().sum(), (q, k, v))
    assert all(not grad[:, :, late].any() for grad in grads)
    last = ops.causal_attention(q, k, v, 0.0, Pattern(70))[:, :, -1]
    grads = torch.autograd.grad(last.float().sum(), (q, k, v))
    assert all(not grad[:, :, : 300 - 70].any() for grad in grads)
    assert all(grad[:, :, 300 - 70].any() for grad in grads[1:])


def test_dropout_goes_through_the_mask() -> None:
    q, k, v, _ = inputs(50)
    torch.manual_seed(1)
    found = ops.causal_attention(q, k, v, 0.5, Pattern(8))
    torch.manual_seed(1)
    assert torch.equal(found, masked_attention(q, k, v, 0.5, Pattern(8)))
    assert not torch.equal(found, masked_attention(q, k, v, 0.0, Pattern(8)))


@pytest.mark.parametrize(("length", "stride"), [(12, 3), (13, 3), (2, 5), (7, 1)])
def test_folding_puts_tokens_a_stride_apart_into_a_row_and_back(length: int, stride: int) -> None:
    x = torch.arange(length).float().view(1, 1, length, 1).expand(2, 3, length, 1)
    rows = fold(x, stride)
    assert rows.shape == (2 * stride, 3, -(-length // stride), 1)
    for residue in range(stride):
        wanted = list(range(residue, length, stride))
        assert rows[residue, 0, : len(wanted), 0].tolist() == wanted
    assert torch.equal(unfold(rows, stride, length), x)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [False, True], ids=["one text a row", "several"])
@pytest.mark.parametrize(("length", "window"), [(200, 64), (128, 0), (300, 100), (40, 256)])
def test_flex_attentions_rule_is_the_mask(length: int, window: int, packed: bool) -> None:
    pattern = Pattern(window, 1, texts(length) if packed else None)
    q, k, v, _ = inputs(length)
    found = flex.attention(q, k, v, pattern)
    torch.testing.assert_close(found, masked_attention(q, k, v, 0.0, pattern), **CLOSE)
    assert flex.block_mask(pattern, length, q.device) is flex.block_mask(pattern, length, q.device)


def test_flex_attention_leaves_out_blocks_that_nobody_sees() -> None:
    table = flex.block_mask(Pattern(128), 2048, torch.device("cpu"))
    assert table.kv_num_blocks.sum() + table.full_kv_num_blocks.sum() == 16 + 15  # of 16 x 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("packed", [False, True], ids=["one text a row", "several"])
@pytest.mark.parametrize(("length", "window", "stride"), [(300, 100, 1), (512, 128, 1), (300, 0, 3), (300, 100, 3)])
def test_a_gpu_equals_the_mask(length: int, window: int, stride: int, packed: bool) -> None:
    first = texts(length).cuda() if packed else None
    tensors = [part.cuda() for part in inputs(length, width=64)]
    pattern = Pattern(window, stride, first)
    wanted = results(lambda q, k, v: masked_attention(q, k, v, 0.0, pattern), tensors)
    found = results(lambda q, k, v: ops.causal_attention(q, k, v, 0.0, pattern), tensors, torch.bfloat16)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.float() - theirs).norm() <= ROUNDING * theirs.norm() + 1e-3


def test_the_kernels_of_bfloat16_are_taken_here_where_the_processor_has_them() -> None:
    q, k, v, _ = (part.bfloat16().requires_grad_() for part in inputs(200, width=64))
    if not fused.flashes(q):
        pytest.skip("this processor multiplies no bfloat16")
    check_that_it_flashes(q, k, v)


def test_the_kernels_of_float32_are_taken_where_they_are_the_fastest(kernels: bool) -> None:
    q, k, v, _ = (part.requires_grad_() for part in inputs(200, width=48))
    if kernels:
        check_that_it_flashes(q, k, v)
    else:
        assert "Flash" not in type(ops.causal_attention(q, k, v, 0.0, Pattern(70)).grad_fn).__name__


def test_what_is_seen_first_never_falls_in_the_rows_of_a_stride_either() -> None:
    for length, stride in ((400, 3), (410, 3), (64, 8), (5, 9)):
        lows = Pattern(0, stride, texts(length)).folded(length).lows(-(-length // stride))
        assert (lows[:, 1:] >= lows[:, :-1]).all() and (lows <= range(lows.shape[1])).all()


def check_that_it_flashes(q: Tensor, k: Tensor, v: Tensor) -> None:
    for pattern in (Pattern(70), Pattern(70, 1, texts(200)), Pattern(0, 1, texts(200))):
        out = ops.causal_attention(q, k, v, 0.0, pattern)
        assert type(out.grad_fn).__name__ == "FlashAttentionBackward"


def test_what_is_worked_on_at_a_time_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(300)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return banded.banded_attention(q, k, v, 100)

    whole = results(run, tensors)
    monkeypatch.setattr(banded, "BAND_SCORES", 1)
    for ours, theirs in zip(results(run, tensors), whole, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
