"""LoRA from outside: nothing changes at first, only A and B learn, also fused and over a quantised base."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.kernels import features, ops
from gpt2.model import quant
from gpt2.model.config import GPTConfig
from gpt2.model.frozen import QuantisedWeight
from gpt2.model.gpt import GPT
from gpt2.model.lora import LoRAConfig, LoRALinear, apply_lora, load_lora, lora_parameters, merge_lora, quantise_base
from gpt2.train.fused_blocks import fuse_blocks
from tests.tiny_models import TINY, make

IDS = torch.randint(0, TINY.vocab_size, (2, 21), generator=torch.Generator().manual_seed(1))
WIDE = GPTConfig(n_layer=2, n_head=4, n_embd=256, vocab_size=257, context_length=64)  # wide enough for the kernels
BOTH = LoRAConfig(rank=4, alpha=8)


def adapted(module: GPT, config: LoRAConfig = BOTH, std: float = 0.1) -> GPT:
    torch.manual_seed(7)
    apply_lora(module, config)
    for parameter in lora_parameters(module).values():
        nn.init.normal_(parameter, std=std)
    return module


def loss_of(module: GPT) -> Tensor:
    total, count = module(IDS[:, :-1], IDS[:, 1:])
    return total / count


def gradients(module: GPT) -> dict[str, Tensor]:
    loss_of(module).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same() -> None:
    module = make()
    before = module(IDS)
    apply_lora(module, BOTH)
    assert torch.equal(module(IDS), before)
    adapted(make())
    module = adapted(make())
    unmerged = module(IDS)
    assert (unmerged - before).abs().max() > 1e-2
    merge_lora(module)
    torch.testing.assert_close(module(IDS), unmerged, rtol=0, atol=1e-5)
    assert type(module.get_submodule("h.0.attn.c_attn")) is nn.Linear and not lora_parameters(module)


def test_only_a_and_b_are_trained_and_their_names_say_where() -> None:
    module = adapted(make(), LoRAConfig(rank=4, target_modules=("c_attn", "mlp.c_proj")))
    names = [
        f"h.{layer}.{part}.lora_{side}" for layer in (0, 1) for part in ("attn.c_attn", "mlp.c_proj") for side in "AB"
    ]
    assert list(lora_parameters(module)) == names == [n for n, p in module.named_parameters() if p.requires_grad]
    assert sorted(gradients(module)) == sorted(names)
    assert {p.dtype for p in lora_parameters(module).values()} == {torch.float32}


def test_the_gradient_is_that_of_the_merged_matrix() -> None:
    """dA = scale B' dW and dB = scale dW A', for the W that the product is a part of."""
    module = adapted(make())
    merged = copy.deepcopy(module)
    merge_lora(merged)
    merged.requires_grad_(True)
    own, whole = gradients(module), gradients(merged)
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            d_weight = whole[f"{name}.weight"]
            torch.testing.assert_close(own[f"{name}.lora_A"], layer.scale * layer.lora_B.detach().T @ d_weight)
            torch.testing.assert_close(own[f"{name}.lora_B"], layer.scale * d_weight @ layer.lora_A.detach().T)


def test_dropout_drops_inputs_of_a_alone_and_only_in_training() -> None:
    module = adapted(make(), LoRAConfig(rank=4, dropout=0.5))
    layer = module.get_submodule("h.0.attn.c_attn")
    assert isinstance(layer, LoRALinear) and isinstance(layer.weight, Tensor)
    x = torch.randn(3, 5, TINY.n_embd)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    torch.manual_seed(3)
    got = layer(x)
    torch.manual_seed(3)
    low = F.dropout(x, 0.5) @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(got, F.linear(x, layer.weight, layer.bias) + layer.scale * low)
    assert not torch.equal(got, layer(x))


@pytest.mark.parametrize(
    "targets",
    [("c_attn", "c_proj", "c_fc"), ("c_attn",), ("mlp.c_proj",), ("c_fc",)],
    ids="+".join,
)
@pytest.mark.parametrize("base", ["float", "int8", "int4"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.06), (torch.float32, 1e-4)])
@pytest.mark.skipif(not ops.have_kernels(), reason="numba cannot be used here")
def test_fused_passes_are_the_plain_ones(
    targets: tuple[str, ...], base: str, dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "by_floats", lambda: False)
    module = make(WIDE)
    if base != "float":
        quantise_base(module, base)  # type: ignore[arg-type]
    plain = adapted(module, LoRAConfig(rank=4, target_modules=targets), std=0.05)
    half = copy.deepcopy(plain)
    for name, parameter in half.named_parameters():
        parameter.data = parameter.data if "lora_" in name else parameter.data.to(dtype)
    wanted, wanted_loss = gradients(plain), loss_of(plain)
    monkeypatch.setattr(features, "by_floats", lambda: True)
    fuse_blocks(half)
    x, block = torch.ones(1, 4, WIDE.n_embd, dtype=dtype, requires_grad=True), half.h[0]
    through = block.attn.qkv(x)[0] if "c_attn" in targets else block.mlp(x)
    assert type(through.grad_fn).__name__.startswith("Norm")
    got = gradients(half)
    torch.testing.assert_close(loss_of(half), wanted_loss, rtol=0, atol=most / 3)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < most, f"{name}: {error:.3f}"


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(96, 200), (33, 64), (256, 256)])
def test_a_dense_matrix_is_what_the_format_says(kind: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    unpacked = torch.from_numpy(quant.unpack(quant.pack(weight.numpy(), kind)))
    matrix = QuantisedWeight(weight, kind)
    assert torch.equal(matrix.dense(torch.float32), unpacked)
    torch.testing.assert_close(matrix.bfloat16().dense(torch.bfloat16).float(), unpacked, rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_base_learns_and_merges(kind: str) -> None:
    module = make()
    quantise_base(module, kind)  # type: ignore[arg-type]
    plain = make()
    for name, layer in module.named_modules():
        if isinstance(layer, QuantisedWeight):
            plain.get_submodule(name.removesuffix(".weight")).weight.data = layer.dense(torch.float32)
    adapted(module), adapted(plain)
    torch.testing.assert_close(module(IDS), plain(IDS), rtol=0, atol=1e-5)
    own, theirs = gradients(module), gradients(plain)
    assert own.keys() == theirs.keys() and all(torch.allclose(own[n], theirs[n], atol=1e-5) for n in own)
    before = module(IDS)
    merge_lora(module)
    torch.testing.assert_close(module(IDS), before, rtol=0, atol=1e-5)


def test_nothing_is_kept_for_what_is_frozen() -> None:
    """Of a product with a frozen matrix autograd keeps no input; of a quantised one no dense copy either."""
    kept: list[int] = []
    module = make(WIDE).bfloat16().requires_grad_(False)
    quantise_base(module, "int8")
    x = torch.randn(64, WIDE.n_embd, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        module.get_submodule("h.0.mlp.c_fc")(x)
        ops.linear(x, nn.Parameter(torch.zeros(512, WIDE.n_embd, dtype=torch.bfloat16), requires_grad=False), None)
    assert kept == ([512 * WIDE.n_embd] if ops.have_kernels() else kept)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"alpha": 0}, "alpha = 0"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"target_modules": ("c_atn",)}, "'c_atn' is no matrix of a block of this model"),
        ({"target_modules": ("attn",)}, "'attn' is no matrix"),
        ({"target_modules": ("h.7.attn.c_attn",)}, "'h.7.attn.c_attn' is no matrix"),
    ],
    ids=str,
)
def test_settings_that_make_no_adapter_are_a_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        apply_lora(make(), LoRAConfig(**config))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused_and_nothing_is_copied() -> None:
    module, other = adapted(make()), adapted(make(n_embd=64, head_dim=0, n_inner=0))
    before = {name: p.clone() for name, p in lora_parameters(module).items()}
    with pytest.raises(UserError, match=r"does not fit this base: h\.0\.attn\.c_attn\.lora_A"):
        load_lora(module, dict(lora_parameters(other)))
    assert all(torch.equal(before[name], p) for name, p in lora_parameters(module).items())
    with pytest.raises(UserError, match="has an adapter already"):
        apply_lora(module, BOTH)
    with pytest.raises(UserError, match="quantise the base before"):
        quantise_base(module, "int8")
