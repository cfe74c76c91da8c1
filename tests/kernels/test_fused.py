"""Each fused operation computes what its plain counterpart computes in float32, to its number format's precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels import features, fused, ops
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.gpt import GPT

ROUNDING = 1.5e-2  # relative, of whole tensors: bfloat16 keeps 8 bits
ROUNDINGS = {torch.bfloat16: ROUNDING, torch.float32: 3e-6}
Function = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32's kernels on any processor: only where they are the fastest are they taken by themselves."""
    monkeypatch.setattr(features, "by_floats", lambda: True)


def gradients(function: Function, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of each tensor, from inputs that both precisions can hold."""
    leaves = [t.to(torch.bfloat16).to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(out.dtype)
    out.backward(seed if out.dim() else None)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def agree(function: Function, plain: Function, shapes: list[tuple[int, ...]], scales: list[float]) -> None:
    dice = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=dice) * scale for shape, scale in zip(shapes, scales, strict=True)]
    wanted = gradients(plain, tensors, torch.float32)
    for dtype, rounding in ROUNDINGS.items():
        found, again = (gradients(function, tensors, dtype) for _ in range(2))
        assert len(found) == len(wanted) == len(tensors) + 1
        for ours, theirs, repeated in zip(found, wanted, again, strict=True):
            assert torch.equal(ours, repeated), "not the same bits twice"
            assert (ours.float() - theirs).norm() <= rounding * theirs.norm() + 1e-9


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "c", "f"), [((2, 33), 96, 40), ((70,), 64, 100)])
def test_linear(rows: tuple[int, ...], c: int, f: int, bias: bool) -> None:
    agree(fused.Linear.apply if bias else lambda x, w: fused.Linear.apply(x, w, None), F.linear,
          [(*rows, c), (f, c), (f,)][: 2 + bias], [1.0, 0.3, 0.5][: 2 + bias])  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 3), (2, 33, 96), (1, 1)])
def test_gelu(shape: tuple[int, ...]) -> None:
    agree(fused.Gelu.apply, lambda x: F.gelu(x, approximate="tanh"), [shape], [3.0])


@pytest.mark.parametrize(
    ("b", "h", "t", "d"),
    [(2, 3, 33, 20), (1, 2, 256, 64), (3, 1, 2, 8), (1, 2, 100, 64), (2, 1, 600, 64), (1, 1, 1, 64), (1, 2, 70, 128)],
)
def test_causal_attention(b: int, h: int, t: int, d: int) -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    agree(fused.causal_attention, plain, [(b, h, t, d)] * 3, [1.0] * 3)


@pytest.mark.parametrize(("n", "c", "v"), [(50, 16, 70), (128, 64, 2048)])
@pytest.mark.parametrize("bias", [False, True])
def test_head_loss(n: int, c: int, v: int, bias: bool) -> None:
    targets = torch.randint(v, (n,), generator=torch.Generator().manual_seed(2))
    targets[::7] = IGNORE_INDEX

    def ours(hidden: Tensor, head: Tensor, b: Tensor | None = None) -> Tensor:
        return fused.HeadLoss.apply(hidden, head, b, targets, IGNORE_INDEX, v)  # type: ignore[no-any-return]

    def plain(hidden: Tensor, head: Tensor, b: Tensor | None = None) -> Tensor:
        return F.cross_entropy(F.linear(hidden, head, b), targets, ignore_index=IGNORE_INDEX, reduction="sum")

    agree(ours, plain, [(n, c), (v, c), (v,)][: 2 + bias], [1.0, 0.3, 0.5][: 2 + bias])


@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize("strange", [-1, 5, 70])
def test_a_target_that_is_no_token_is_refused(strange: int, dtype: torch.dtype) -> None:
    hidden, head = torch.ones(2, 8, dtype=dtype).requires_grad_(), torch.ones(64, 8, dtype=dtype)
    with pytest.raises(IndexError, match=f"target {strange} is out of bounds: the vocabulary has 5 tokens"):
        ops.head_loss(hidden, head, None, torch.tensor([strange, 1]), IGNORE_INDEX, 5)
    with pytest.raises(IndexError):
        ops.embedding(head.requires_grad_(), torch.tensor([64 if strange > 0 else strange]))


@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_no_rows_at_all_are_no_rows_out(dtype: torch.dtype) -> None:
    x, weight = torch.ones(0, 256, dtype=dtype).requires_grad_(), torch.ones(512, 256, dtype=dtype).requires_grad_()
    out = fused.Linear.apply(x, weight, None)
    out.sum().backward()
    assert out.shape == (0, 512) and weight.grad is not None and not weight.grad.any()


def test_a_row_without_target_adds_nothing() -> None:
    hidden = torch.randn(3, 8).bfloat16().requires_grad_()
    targets = torch.full((3,), IGNORE_INDEX)
    loss = fused.HeadLoss.apply(hidden, torch.randn(5, 8).bfloat16(), None, targets, IGNORE_INDEX, 5)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_embedding_sums_a_frequent_tokens_gradient_in_float32() -> None:
    ids = torch.randint(5, (64, 64), generator=torch.Generator().manual_seed(0))
    agree(lambda w: fused.Embedding.apply(w, ids, None), lambda w: F.embedding(ids, w), [(9, 24)], [1.0])


@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_a_tied_embeddings_gradient_joins_the_heads(dtype: torch.dtype) -> None:
    ids = torch.randint(5, (64,), generator=torch.Generator().manual_seed(0))
    head = torch.randn(9, 24).to(dtype)
    found = []
    for joined in (False, True):
        weight = torch.ones(9, 24, dtype=dtype).requires_grad_()
        if joined:
            fused.join_gradients(weight)
        for _ in range(2):
            (ops.embedding(weight, ids).sum() + (weight * head).sum()).backward()
        assert weight.grad is not None
        found.append(weight.grad.float())
    assert (found[0] - found[1]).norm() <= ROUNDINGS[dtype] * found[0].norm()


@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_infinities_and_nan_show_in_the_loss(dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf")):
        hidden = torch.ones(2, 4, dtype=dtype).requires_grad_()
        head = torch.full((6, 4), value, dtype=dtype)
        loss = fused.HeadLoss.apply(hidden, head, None, torch.tensor([1, 2]), IGNORE_INDEX, 6)
        assert not torch.isfinite(loss)


def test_a_whole_model_learns_the_same_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=32, vocab_size=101, head_bias=True)
    model = GPT(config).bfloat16()
    ids = torch.randint(101, (4, 33), generator=torch.Generator().manual_seed(3))

    def loss_and_gradients() -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        total, _ = model(ids[:, :-1], ids[:, 1:])
        total.backward()
        return total.item(), {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}

    assert ops.have_kernels()
    loss, found = loss_and_gradients()
    monkeypatch.setattr(ops, "have_kernels", lambda: False)
    plain_loss, wanted = loss_and_gradients()
    assert loss == pytest.approx(plain_loss, rel=2e-3)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), name
