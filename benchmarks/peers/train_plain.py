"""The peer in training: nanoGPT's model and its loop in plain PyTorch, with nothing of ours in it.

The model is that of nanoGPT's `model.py` (karpathy, MIT): fused qkv, scaled_dot_product_attention, cross entropy over
all logits, weights tied; the loop is its `train.py`: AdamW fused, decay on matrices only, gradients clipped at 1 and
set to None, `autocast`, bfloat16 or float32 weights, `torch.compile` or not. Biases as in its train.py: none.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """What model and batch are made of, and AdamW's numbers: the same for every side."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    length: int
    rows: int
    bias: bool = False
    learning_rate: float = 6e-4
    warmup: int = 20  # steps
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step, the first being 0: a linear warm-up, then constant."""
        return min(1.0, (step + 1) / (self.warmup + 1))


class LayerNorm(nn.Module):
    """Layer norm with an optional bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (p.view(b, t, self.n_head, -1).transpose(1, 2) for p in self.c_attn(x).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd, bias=shape.bias)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1, self.attn = LayerNorm(shape.n_embd, shape.bias), Attention(shape)
        self.ln_2, self.mlp = LayerNorm(shape.n_embd, shape.bias), Mlp(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class NanoGPT(nn.Module):
    """forward(ids, targets) -> mean loss. Parameters are named as ours are, so that both start from the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.length, shape.n_embd)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = LayerNorm(shape.n_embd, shape.bias)
        self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                scale = 1 / math.sqrt(2 * shape.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.size(1), device=ids.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


class PlainLoop:
    """The loop, one step at a time. `weights`: autocast (of float32 ones), bf16 or float32."""

    def __init__(self, shape: Shape, device: str, weights: str, compiled: bool) -> None:
        self.shape, self.device, self.steps = shape, device, 0
        self.model = NanoGPT(shape).to(device, torch.bfloat16 if weights == "bf16" else torch.float32)
        kind = device.partition(":")[0]
        self.context: Any = torch.autocast(kind, torch.bfloat16) if weights == "autocast" else nullcontext()
        self.optimizer = adamw(self.model, shape)
        self.run: Any = torch.compile(self.model) if compiled else self.model

    def load(self, state: dict[str, Tensor]) -> None:
        """Start from these weights."""
        self.model.load_state_dict(state)

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """One optimizer step on rows (B, T); the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.shape.learning_rate * self.shape.rate(self.steps)
        with self.context:
            loss = self.run(ids.to(self.device), targets.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.shape.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())


def adamw(model: nn.Module, shape: Shape) -> torch.optim.AdamW:
    """nanoGPT's configure_optimizers: matrices decay, vectors do not, the fused kernel."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": shape.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=shape.learning_rate, betas=shape.betas, fused=True)
