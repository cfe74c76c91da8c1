"""`--fp8`: the blocks' products in 8-bit floats. The numbers are a GPU's; a processor only takes longer over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.distributed.estimate import fake_processes
from gpt2.distributed.float8 import Float8Linear, apply_float8, check_float8
from gpt2.distributed.mesh import MeshSizes, make_mesh
from gpt2.distributed.parallelize import parallelize
from gpt2.errors import UserError
from gpt2.kernels.float8 import BACKWARD, FORWARD, Product, shorten
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import TrainConfig
from gpt2.train.pretrain import pretrain
from gpt2.train.tune_config import TuneConfig

Tiny = Callable[..., TrainConfig]


class Counted(TorchDispatchMode):
    """How many products in 8 bits were done."""

    products = 0

    def __torch_dispatch__(self, operation: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += operation is torch.ops.aten._scaled_mm.default
        return operation(*args, **(kwargs or {}))


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What 8 bits keep of x."""
    short, scale = shorten(x, dtype)
    return short.float() * scale


def test_products_are_those_of_the_rounded_numbers_there_and_back() -> None:
    x, weight, bias, grad = random(2, 16, 48), random(64, 48, scale=0.02), random(64), random(2, 16, 64, scale=1e-6)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    out = Product.apply(*inputs)
    out.backward(grad)
    rows, matrix, back = rounded(x, FORWARD), rounded(weight, FORWARD), rounded(grad, BACKWARD)
    expected = rows @ matrix.T + bias, back @ matrix, back.flatten(0, 1).T @ rows.flatten(0, 1), grad.sum((0, 1))
    for found, wanted in zip((out, *(tensor.grad for tensor in inputs)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_rounding_keeps_the_largest_number_and_three_digits_of_the_others() -> None:
    x = random(512, scale=1e-3)
    assert float(rounded(x, FORWARD).abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    normal = x.abs() > x.abs().max() * 2**-6 / 448
    assert float(((rounded(x, FORWARD) - x) / x)[normal].abs().max()) <= 2**-4
    assert torch.equal(rounded(torch.zeros(16), FORWARD), torch.zeros(16))


def loss_of(model: GPT, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def test_a_model_learns_as_it_does_in_float32() -> None:
    torch.manual_seed(1)
    whole = make(n_embd=64, n_head=4, vocab_size=96, context_length=32)
    short = copy.deepcopy(whole)
    apply_float8(short)
    rows, losses = random(400, 33).mul(16).long().clamp(-47, 47) + 48, {}
    for name, model in (("float32", whole.train()), ("fp8", short.train())):
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for step in range(50):
            optimizer.zero_grad()
            loss = loss_of(model, rows[8 * step : 8 * step + 8])
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["float32"] < 4.3  # from log(96) = 4.56
    assert losses["fp8"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["fp8"] != losses["float32"]


def test_every_product_of_a_pass_lies_as_a_gpu_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = torch._scaled_mm, []

    def multiply(a: Tensor, b: Tensor, *arguments: Any, **more: Any) -> Tensor:
        assert a.stride(1) == 1 and b.stride(0) == 1, (a.stride(), b.stride())
        assert all(side % 16 == 0 for side in (*a.shape, *b.shape))
        calls.append((a.dtype, b.dtype))
        return original(a, b, *arguments, **more)

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    model = make(n_layer=2, n_embd=64, n_head=4, vocab_size=96, context_length=32)
    apply_float8(model)
    loss_of(model.train(), random(4, 33).abs().long()).backward()
    assert calls.count((FORWARD, FORWARD)) == 2 * 4
    assert calls.count((BACKWARD, FORWARD)) == 2 * 4 * 2
    assert len(calls) == 24


def test_an_evaluation_and_an_odd_number_of_tokens_are_in_full_digits() -> None:
    whole = make(n_embd=64, n_head=4, context_length=32)
    short = copy.deepcopy(whole)
    apply_float8(short)
    ids = torch.arange(32)[None]
    assert torch.equal(short.eval()(ids), whole.eval()(ids))
    assert torch.equal(short.train()(ids[:, :31]), whole.train()(ids[:, :31]))
    assert not torch.equal(short(ids), whole(ids))


@pytest.mark.parametrize(("recompute", "products"), [("none", 24), ("selective", 24), ("full", 32)])
def test_what_is_computed_again_is_the_same(recompute: Any, products: int) -> None:
    """And no more than was asked for: four matrices in each of two layers, once there and twice back."""
    model = make(n_layer=2, n_embd=64, n_head=4, context_length=32)
    again = copy.deepcopy(model)
    parallelize(model, None, fp8=True)
    parallelize(again, None, recompute=recompute, fp8=True)
    rows = torch.arange(33).repeat(2, 1)
    counts = []
    for each in (model, again):
        with Counted() as counted:
            loss_of(each.train(), rows).backward()
        counts.append(counted.products)
    assert counts == [24, products]
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_no_short_copy_of_a_weight_waits_for_the_way_back() -> None:
    """Under FSDP the whole weights are gone by then: their copies would be all of the model."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    model = make(n_layer=2, n_embd=64, n_head=4, context_length=32)
    apply_float8(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model.train(), torch.arange(33).repeat(2, 1)).backward()
    short = [tensor.shape for tensor in kept if tensor.dtype == FORWARD]
    assert len(short) == 8 and {shape[0] for shape in short} == {64}  # inputs of 64 tokens


def test_compiled_blocks_have_no_gaps() -> None:
    model = make(n_layer=2, n_embd=64, n_head=4, context_length=32)
    apply_float8(model)
    rows = torch.arange(33).repeat(2, 1)
    plain = float(loss_of(model.train(), rows).detach())
    for block in model.h:
        block.compile(fullgraph=True, backend="aot_eager")
    loss_of(model, rows).backward()
    assert float(loss_of(model, rows).detach()) == pytest.approx(plain, rel=1e-4)


def test_names_stay_and_heads_and_embeddings_are_left_alone() -> None:
    model = make(n_layer=2)
    names = [name for name, _ in model.named_parameters()]
    apply_float8(model)
    assert [name for name, _ in model.named_parameters()] == names
    changed = [name for name, layer in model.named_modules() if isinstance(layer, Float8Linear)]
    assert len(changed) == 8 and all(name.startswith("h.") for name in changed)


def test_on_a_mesh_q_k_and_v_too() -> None:
    with fake_processes(2):
        model = parallelize(make(n_layer=1), make_mesh(MeshSizes(dp_shard=2), "cpu"), fp8=True)
        assert sum(isinstance(layer, Float8Linear) for layer in model.modules()) == 6


SHAPE = GPTConfig(n_layer=1, n_head=4, n_embd=64)


@pytest.mark.parametrize(
    ("device", "dtype", "tp", "shape", "message"),
    [
        ("cpu", "bfloat16", 1, SHAPE, "--fp8: cpu multiplies no 8-bit floats, which takes an NVIDIA GPU"),
        ("cuda:0", "bfloat16", 1, SHAPE, r"--fp8: Old Card multiplies no 8-bit floats \(compute capability 8.9"),
        ("cuda", "float16", 1, SHAPE, "--fp8 --dtype float16: .* leave --dtype out"),
        ("cuda", "bfloat16", 2, SHAPE, "--fp8 --tp 2: .* leave one out"),
        ("cuda", "bfloat16", 1, GPTConfig(n_head=2, n_embd=5140), "--fp8: n_embd = 5140 is no multiple of 16"),
        ("cuda", "bfloat16", 1, replace(SHAPE, context_length=100), "--fp8: context_length = 100 is no multiple"),
    ],
)
def test_what_cannot_be_done_in_8_bits_is_refused(
    device: str, dtype: str, tp: int, shape: GPTConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: (8, 0) if name == "cuda:0" else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "Old Card")
    check_float8("cuda", "bfloat16", 1, SHAPE)
    with pytest.raises(UserError, match=message):
        check_float8(device, dtype, tp, shape)


def test_a_run_on_a_processor_is_refused_before_it_begins(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fp8: cpu multiplies no 8-bit floats"):
        pretrain(tiny(fp8=True, out=str(tmp_path / "run")), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--fp8: an adapter's frozen matrices"):
        TuneConfig(method="lora", fp8=True)
