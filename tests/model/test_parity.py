"""The model is GPT-2: transformers' implementation, with the same weights, computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from tiny_models import ODD, make, transformers_twin
from torch import Tensor
from torch.nn import functional as F

from gpt2.checkpoint.native import hf_tensors
from gpt2.inference.generate import generate
from gpt2.inference.sampling import SamplingParams
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.gpt import GPT

SMALL = GPTConfig(n_layer=3, n_head=4, n_embd=128, vocab_size=1000, context_length=256)


@dataclass(frozen=True)
class Pair:
    """Our model and transformers', with what each makes of the same two texts."""

    ours: GPT
    twin: Any

    @cached_property
    def input_ids(self) -> Tensor:
        return torch.randint(0, self.ours.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))

    @cached_property
    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits ours, theirs; loss ours, theirs. Leaves gradients in both."""
        ids = self.input_ids
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE_INDEX)], dim=1)
        total, count = self.ours(ids, targets)
        logits = self.twin(ids).logits + self.bias
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        (total / count).backward()
        loss.backward()
        return self.ours(ids).detach(), logits.detach(), (total / count).detach(), loss.detach()

    @cached_property
    def bias(self) -> Tensor | float:
        """transformers' GPT-2 has no head bias: a leaf of its own stands in."""
        if not self.ours.config.head_bias:
            return 0.0
        return self.ours.lm_head.bias[: self.ours.config.vocab_size].detach().clone().requires_grad_()

    def gradient_distances(self) -> dict[str, float]:
        """Relative distance of every gradient tensor, under transformers' names and in its orientation."""
        assert self.results
        theirs = {name: parameter.grad for name, parameter in self.twin.named_parameters()}
        if isinstance(self.bias, Tensor):
            theirs["lm_head.bias"] = self.bias.grad
        config = self.ours.config
        named = hf_tensors(config, {name: p.grad for name, p in self.ours.named_parameters() if p.grad is not None})
        kept = [(name, ours) for name, ours in named if config.bias or not name.endswith("bias")]
        return {name: float((ours - theirs[name]).norm() / theirs[name].norm()) for name, ours in kept}

    def theirs_greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """transformers' own greedy search."""
        processors = [lambda _, scores: scores + self.bias]
        written = self.twin.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
            logits_processor=processors,
        )
        return written[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=["plain", *ODD, "scale_by_layer", "n_inner"])
def pair(request: pytest.FixtureRequest) -> Pair:
    other = {"plain": {}, "scale_by_layer": {"scale_by_layer": True}, "n_inner": {"n_inner": 300}}
    module = make(SMALL, scale=8.0, **(ODD | other)[request.param])
    return Pair(module, transformers_twin(module))


def greatest_distances(pair: Pair) -> tuple[float, float, float]:
    """Of logits and loss, absolute; of gradient tensors, relative."""
    ours, theirs, our_loss, their_loss = pair.results
    logits = float((ours - theirs).abs().max())
    return logits, abs(float(our_loss - their_loss)), max(pair.gradient_distances().values())


def greedy(module: GPT, prompt: list[int], count: int) -> list[int]:
    (result,) = generate(module, AnyIds(module), [prompt], SamplingParams(max_new_tokens=count, temperature=0))
    return result.tokens


def test_logits_loss_and_every_gradient_equal_transformers(pair: Pair) -> None:
    logits, loss, gradients = greatest_distances(pair)
    assert logits < 2e-5
    assert loss < 1e-5
    assert gradients < 1e-4


def test_every_parameter_has_a_gradient_and_padding_rows_none(pair: Pair) -> None:
    assert pair.results
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pair.ours.parameters())
    assert not pair.ours.wte.weight.grad[SMALL.vocab_size :].any()
    assert not pair.ours.lm_head.weight.grad[SMALL.vocab_size :].any()


def test_greedy_continuation_of_200_tokens_equals_transformers(pair: Pair) -> None:
    prompt = pair.input_ids[0, :7].tolist()
    ours = greedy(pair.ours, prompt, 200)
    assert ours == pair.theirs_greedy(prompt, 200)
    assert len(set(ours)) > 20


@pytest.mark.slow
def test_gpt2_124m_equals_transformers() -> None:
    module = make(GPTConfig(), scale=3.0)
    pair = Pair(module, transformers_twin(module))
    logits, loss, gradients = greatest_distances(pair)
    count = len(pair.gradient_distances())
    print(f"\n124M: logits {logits:.1e}, loss {loss:.1e}, gradients of {count} tensors {gradients:.1e}")
    assert logits < 2e-5
    assert loss < 1e-5
    assert gradients < 1e-4
    prompt = pair.input_ids[0, :7].tolist()
    ours = greedy(module, prompt, 200)
    assert ours == pair.theirs_greedy(prompt, 200)
    assert len(set(ours)) > 20


class AnyIds:
    """Stands in for a tokenizer where only ids matter."""

    eot_id = None

    def __init__(self, module: GPT) -> None:
        self.vocab_size = module.config.vocab_size

    def stream(self) -> AnyIds:
        return self

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""
