"""GPT-2 and GPT-3: the Transformer decoder (Radford et al. 2019, section 2.3; Brown et al. 2020, section 2.1).

Read from the bottom up. Nothing here knows of LoRA, quantisation or distribution: they change the model from
outside. Shapes in trailing comments:

    B rows  T tokens  C n_embd  H heads  D head_dim  A = H * D attention width  V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import ops
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.masks import Causal, Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": ops.gelu,
    "gelu_erf": F.gelu,
}


class CausalSelfAttention(nn.Module):
    """Multi-head attention; which keys a query sees is the context's business."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.dropout
        self.scale = 1 / (layer + 1) if config.scale_by_layer else 1.0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.attention_width, bias=config.bias)
        self.c_proj = nn.Linear(config.attention_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = (self._heads(part) for part in self.qkv(x))
        if self.scale != 1.0:
            q = q * self.scale
        y = context.attend(self.layer, q, k, v, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).flatten(2)  # (B, T, A)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.c_attn(x).chunk(3, dim=-1)  # (B, T, C) -> three of (B, T, A)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, T, A) -> (B, H, T, D)


class MLP(nn.Module):
    """Two linear layers with a GELU between them, each token on its own."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(self.activation(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Layer norm before each part, the residual stream untouched beside it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attn(self.ln_1(x), context)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token and position embeddings, the blocks, a last layer norm, and the head (tied to wte unless untied)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.head_bias)
        if config.tie_head:
            self.lm_head.weight = self.wte.weight
        self.initialise()

    @overload
    def forward(self, input_ids: Tensor, targets: None = None, context: Context | None = None) -> Tensor: ...
    @overload
    def forward(self, input_ids: Tensor, targets: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, context: Context | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V); or, with targets (B, T), the sum of the token losses (float32, nats) and their count.

        Targets are already shifted: targets[:, t] follows input_ids[:, t]; IGNORE_INDEX is left out.
        """
        hidden = self.body(input_ids, context)
        if targets is None:
            return self.head(hidden)
        return self.loss(hidden, targets)

    def body(self, input_ids: Tensor, context: Context | None = None) -> Tensor:
        """All but the head: input_ids (B, T) -> hidden states after the last layer norm (B, T, C)."""
        context = context or Causal()
        positions = context.begin(input_ids, self.config)
        x = ops.embedding(self.wte.weight, input_ids) + self.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, context)
        context.finish()
        return self.ln_f(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., V), without the rows that memory is padded to."""
        return self.lm_head(hidden)[..., : self.config.vocab_size]

    def loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) and targets (B, T) -> (sum of losses in float32, number of targets)."""
        rows = (hidden.flatten(0, -2), self.lm_head.weight, self.lm_head.bias)
        total = ops.head_loss(*rows, targets.flatten(), IGNORE_INDEX, self.config.vocab_size)
        return total, (targets != IGNORE_INDEX).sum()

    def initialise(self) -> None:
        """First weights, parameter by parameter in their order."""
        for name, parameter in self.named_parameters():
            initialise(name, parameter, self.config)

    def parameter_count(self) -> int:
        """Numbers the model is made of: the tied head once, padding rows not at all."""
        padding = self.config.padded_vocab_size - self.config.vocab_size
        rows = self.config.n_embd * (1 if self.config.tie_head else 2) + self.config.head_bias
        return sum(p.numel() for p in self.parameters()) - padding * rows


@torch.no_grad()
def initialise(name: str, parameter: Tensor, config: GPTConfig) -> None:
    """N(0, init_std), residual projections scaled by 1/sqrt(2 n_layer), norms 1; biases and padding rows 0."""
    if name.endswith("bias"):
        parameter.zero_()
    elif ".ln_" in f".{name}":
        parameter.fill_(1.0)
    else:
        residual = config.init_std / math.sqrt(2 * config.n_layer)
        parameter.normal_(0.0, residual if name.endswith("c_proj.weight") else config.init_std)
    if name in ("wte.weight", "lm_head.weight"):
        parameter[config.vocab_size :] = 0.0
