"""The optimizers against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.entries import Joined
from gpt2.train.muon import Muon, orthogonalise
from gpt2.train.optim import Optimizer, sort_parameters
from gpt2.train.weights import Weights

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=50)


def fill_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=dice)


@pytest.mark.parametrize("shape", [(24, 24), (48, 12), (12, 48)])
def test_muon_equals_torchs_on_plain_matrices(shape: tuple[int, int]) -> None:
    ours = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(s))) for s in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([(f"h.{i}.mlp.c_fc.weight", p) for i, p in enumerate(ours)], 0.02, 0.1)
    oracle = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for step in range(3):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        muon.step(1.0, 0.95)
        oracle.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.linalg.norm(a - b) < 0.01 * torch.linalg.norm(b)  # both iterate in bfloat16


def test_q_k_and_v_are_orthogonalised_separately() -> None:
    whole = nn.Parameter(torch.zeros(48, 16))
    parts = [nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    fill_gradients([whole], 1)
    assert whole.grad is not None
    for i, part in enumerate(parts):
        part.grad = whole.grad[16 * i : 16 * i + 16].clone() * 10**i  # their sizes must not matter
    whole.grad = torch.cat([part.grad for part in parts if part.grad is not None])
    Muon([("h.0.attn.c_attn.weight", whole)], 0.1, 0.0, torch.float32).step(1.0, 0.9)
    for part in parts:
        Muon([("h.0.attn.c_proj.weight", part)], 0.1, 0.0, torch.float32).step(1.0, 0.9)
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 32), (1, 32, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_adamw_decays_matrices_only_and_every_parameter_has_one_place() -> None:
    model = GPT(CONFIG)
    kinds = sort_parameters(model)
    assert {name for name, _ in kinds["embedding"]} == {"wte.weight", "wpe.weight"}
    assert all(p.dim() == 1 for _, p in kinds["vector"])
    assert all(p.dim() == 2 and name.startswith("h.") for name, p in kinds["hidden"])
    assert sum(map(len, kinds.values())) == len(list(model.parameters()))
    for group in Optimizer(model, OptimConfig(optimizer="adamw")).adamw.param_groups:
        assert (group["weight_decay"] == 0.0) == all(p.dim() == 1 for p in group["params"])


def test_adamw_equals_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = GPT(CONFIG), GPT(CONFIG)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    vectors = [p for p in theirs.parameters() if p.dim() == 1]
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.005,
        betas=(0.9, 0.95),
    )
    optimizer = Optimizer(ours, config)
    for step in range(3):
        fill_gradients(list(ours.parameters()), step)
        fill_gradients(list(theirs.parameters()), step)
        optimizer.step(0.5)
        oracle.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_clipping_returns_the_norm_before_it() -> None:
    weights = Weights(GPT(CONFIG), torch.float32)
    for parameter in weights.parameters:
        parameter.grad = torch.full(parameter.shape, 2.0)
    norm = 2.0 * sum(p.numel() for p in weights.parameters) ** 0.5
    assert weights.clip(1.0) == pytest.approx(norm)
    assert weights.clip(0.0) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_is_copied_into_the_live_tensors_makes_another_run_go_on_alike(optimizer: str) -> None:
    torch.manual_seed(0)
    config = OptimConfig(optimizer=optimizer)  # type: ignore[arg-type]
    first, second = Weights(GPT(CONFIG), torch.float32), Weights(GPT(CONFIG), torch.float32)
    theirs, ours = Optimizer(first.master, config), Optimizer(second.master, config)

    def step(weights: Weights, optimizer: Optimizer, seed: int) -> None:
        fill_gradients(weights.parameters, seed)  # type: ignore[arg-type]
        optimizer.step(1.0)

    step(first, theirs, 1)
    for source, target in ((first.tensors(), second.tensors()), (theirs.tensors(), ours.tensors())):
        assert source.keys() == target.keys()
        for name, tensor in target.items():
            tensor.copy_(source[name])
    step(first, theirs, 2)
    step(second, ours, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))


def test_entries_cut_the_fused_matrix_in_three_and_join_again() -> None:
    weights = Weights(GPT(CONFIG), torch.float32)
    tensors = weights.tensors()
    assert tensors["h.1.attn.c_attn.k.weight"].shape == (32, 32) and "h.1.attn.c_attn.weight" not in tensors
    joined = Joined(tensors)
    named = dict(weights.master.named_parameters())
    assert list(joined) == list(named)
    assert all(torch.equal(joined[name], parameter) for name, parameter in named.items())
