"""The passes that spare the float32 gradient give the numbers of the plain weights and optimizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpt2.kernels import features
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.fused_blocks import fuse_blocks
from gpt2.train.fused_weights import FusedWeights, make_optimizer, make_weights
from gpt2.train.optim import Optimizer
from gpt2.train.weights import Weights

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=64, context_length=32, vocab_size=101)
IDS = torch.randint(101, (4, 33), generator=torch.Generator().manual_seed(3))


def train(make: Callable[[GPT], tuple[Weights, Optimizer]], parts: int, most: float) -> tuple[Weights, list[float]]:
    """Three steps in `parts` micro-batches; the weights and each step's gradient norm."""
    torch.manual_seed(0)
    weights, optimizer = make(GPT(CONFIG))
    norms = []
    for _ in range(3):
        weights.clear_gradients()
        for number, ids in enumerate(IDS.chunk(parts), 1):
            total, _ = weights.worker(ids[:, :-1], ids[:, 1:])
            weights.backward(total / IDS[:, 1:].numel(), last=number == parts)
        weights.unscale()
        norms.append(weights.clip(most))
        optimizer.step(0.5)
        weights.publish()
    return weights, norms


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("parts", "most"), [(1, 0.0), (1, 0.5), (2, 0.5)])
def test_three_steps_as_the_plain_ones(optimizer: str, parts: int, most: float) -> None:
    config = OptimConfig(optimizer=optimizer)  # type: ignore[arg-type]

    def fused(model: GPT) -> tuple[Weights, Optimizer]:
        weights = make_weights(model, torch.bfloat16)
        assert isinstance(weights, FusedWeights)
        return weights, make_optimizer(weights, config, torch.float32)

    def plain(model: GPT) -> tuple[Weights, Optimizer]:
        weights = Weights(model, torch.bfloat16)
        fuse_blocks(weights.worker)  # the same passes: what differs is what becomes of their gradients
        return weights, Optimizer(model, config, torch.float32)

    (found, norms), (wanted, plain_norms) = train(fused, parts, most), train(plain, parts, most)
    assert norms[0] == pytest.approx(plain_norms[0], rel=1e-5)
    assert norms == pytest.approx(plain_norms, rel=1e-2)  # later steps: weights that bfloat16 rounds otherwise
    moved = distance(wanted.parameters, list(GPT(CONFIG).parameters()))
    assert distance(found.parameters, wanted.parameters) < 5e-3 * moved
    for master, short in zip(found.parameters, found.short, strict=True):
        assert torch.equal(master.bfloat16(), short)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("parts", "most"), [(1, 0.5), (2, 0.5)])
def test_three_steps_in_float32_as_the_plain_ones(
    optimizer: str, parts: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OptimConfig(optimizer=optimizer)  # type: ignore[arg-type]

    def make(model: GPT) -> tuple[Weights, Optimizer]:
        weights = make_weights(model, torch.float32)
        return weights, make_optimizer(weights, config, torch.float32)

    trained = {}
    for kernels in (True, False):
        monkeypatch.setattr(features, "by_floats", lambda kernels=kernels: kernels)
        trained[kernels] = train(make, parts, most)
        assert trained[kernels][0].fused is kernels
    (found, norms), (wanted, plain_norms) = trained[True], trained[False]
    assert norms == pytest.approx(plain_norms, rel=1e-5)
    moved = distance(wanted.parameters, list(GPT(CONFIG).parameters()))
    assert distance(found.parameters, wanted.parameters) < 1e-3 * moved


def distance(left: list[torch.nn.Parameter], right: list[torch.nn.Parameter]) -> float:
    return float(sum((a.detach() - b.detach()).norm() for a, b in zip(left, right, strict=True)))


def test_what_is_loaded_into_the_masters_is_published() -> None:
    weights = make_weights(GPT(CONFIG), torch.bfloat16)
    tensors: dict[str, Tensor] = weights.tensors()
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(0.5)
    weights.publish()
    assert all(torch.equal(short, torch.full_like(short, 0.5)) for short in weights.short)
