"""A worker whose blocks were changed from outside computes what the model as it is written does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gpt2.kernels import features, ops
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.fused_blocks import fuse_blocks

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=256, context_length=32, vocab_size=512)
BANDED = {"attention_pattern": ("dense", "banded"), "band_width": 8}
IDS = torch.randint(512, (8, 33), generator=torch.Generator().manual_seed(3))


def loss_and_gradients(model: GPT) -> tuple[float, dict[str, Tensor]]:
    for _ in range(2):  # the second time with a gradient already there
        total, _ = model(IDS[:, :-1], IDS[:, 1:])
        total.backward()
    return total.item(), {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, (2e-3, 0.03)), (torch.float32, (1e-6, 1e-5))])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"activation": "gelu_erf"}, {"tie_head": False}, BANDED])
def test_the_same_loss_and_gradients(
    changes: dict[str, object], dtype: torch.dtype, close: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ops.have_kernels()
    monkeypatch.setattr(features, "by_floats", lambda: False)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**vars(CONFIG), **changes}))
    wanted_loss, wanted = loss_and_gradients(model)  # float32, plain
    monkeypatch.setattr(features, "by_floats", lambda: True)
    changed = copy.deepcopy(model).to(dtype)
    changed.zero_grad()
    fuse_blocks(changed)
    through = changed.h[0].attn.qkv(torch.ones(1, 4, 256, dtype=dtype, requires_grad=True))[0]
    assert type(through.grad_fn).__name__ == "NormLinearBackward"
    loss, found = loss_and_gradients(changed)
    assert loss == pytest.approx(wanted_loss, rel=close[0])
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= close[1] * gradient.norm(), name


def test_without_gradients_it_is_the_plain_model() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG).bfloat16()
    with torch.no_grad():
        wanted = model(IDS[:, :-1])
        fuse_blocks(model)
        assert torch.equal(model(IDS[:, :-1]), wanted)


def test_layers_of_another_kind_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    model = GPT(CONFIG).bfloat16()
    other = model.h[0].attn.c_attn = Other(256, 768).bfloat16()
    model.h[1].mlp.c_proj = Other(1024, 256).bfloat16()
    fuse_blocks(model)
    model(IDS[:, :-1], IDS[:, 1:])[0].backward()
    assert other.weight.grad is not None
    assert all(parameter.grad is not None for parameter in model.parameters())
