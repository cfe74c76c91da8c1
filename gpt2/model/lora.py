"""LoRA from outside the model: frozen matrices with a small trainable product beside them, and back again.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". The order of things: load the base in the dtype
that it is to be used in (`module.to(torch.bfloat16)`), maybe `quantise_base`, then `apply_lora`.

    N tokens  C width of a matrix's input  F width of its output  r rank
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.kernels import ops
from gpt2.kernels.frozen import FrozenLayer, Low, dense
from gpt2.model.frozen import FrozenLinear, QuantisedWeight, quantise_base
from gpt2.model.gpt import GPT
from gpt2.model.lora_config import LoRAConfig, check_fit

__all__ = ["LoRAConfig", "LoRALinear", "apply_lora", "load_lora", "lora_parameters", "merge_lora", "quantise_base"]


class LoRALinear(nn.Module):
    """x W' + bias + scale x A' B', of which only lora_A (r, C) and lora_B (F, r) are trained.

    These two are float32 whatever the base is in, so that small steps are not lost; a pass reads them in its own
    dtype. `weight` (F, C) is the frozen matrix of the base, `bias` its bias or None, under the names they had.
    """

    def __init__(self, base: nn.Linear | FrozenLinear, config: LoRAConfig) -> None:
        super().__init__()
        rows, columns = base.out_features, base.in_features
        device = base.weight.device
        self.out_features, self.in_features = rows, columns
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = config.scale, config.dropout
        self.lora_A = nn.Parameter(torch.empty(config.rank, columns, device=device))
        self.lora_B = nn.Parameter(torch.zeros(rows, config.rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT does; with B zero the model is unchanged
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropping:
            dropped = F.dropout(x, self.dropout)
            low = F.linear(F.linear(dropped, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
            return torch.add(ops.frozen_linear(x, self.weight, self.bias), low, alpha=self.scale)
        return ops.lora_linear(x, self.parts)

    @property
    def parts(self) -> FrozenLayer:
        """The layer as the operations of kernels/ops.py take it."""
        return FrozenLayer(self.weight, self.bias, Low(self.lora_A, self.lora_B, self.scale))

    @property
    def dropping(self) -> bool:
        """Whether inputs of A are dropped now."""
        return self.training and self.dropout > 0.0

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the weight W + scale B A, in the dtype of W (a quantised one in float32)."""
        weight = dense(self.weight, torch.float32)
        kept = torch.float32 if isinstance(self.weight, QuantisedWeight) else self.weight.dtype
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter((weight + self.scale * (self.lora_B.float() @ self.lora_A.float())).to(kept))
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.lora_A.size(0)}, scale={self.scale:g}"


def apply_lora(module: GPT, config: LoRAConfig) -> None:
    """Freeze all of the model and put LoRA on its targets, in place; the model computes the same as before.

    The base may be float32, bfloat16 or quantised (`quantise_base`). UserError for a target that is no matrix of a
    block, or has an adapter already.
    """
    module.requires_grad_(False)
    for name in config.targets(module.config):
        layer = module.get_submodule(name)
        if isinstance(layer, LoRALinear):
            raise UserError(f"{name}: has an adapter already; merge it before another is put on")
        assert isinstance(layer, nn.Linear | FrozenLinear)
        replace(module, name, LoRALinear(layer, config))


def lora_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name and in the model's order: "h.0.attn.c_attn.lora_A" (r, C), "...lora_B" (F, r)."""
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers(module) for part in ("lora_A", "lora_B")}


@torch.no_grad()
def load_lora(module: GPT, state: Mapping[str, Tensor]) -> None:
    """Copy an adapter's tensors, under the names of `lora_parameters`, into a model that `apply_lora` was called on.

    UserError that names the first tensor which does not fit; nothing is copied then.
    """
    own = lora_parameters(module)
    check_fit({name: tuple(tensor.shape) for name, tensor in own.items()}, state)
    for name, parameter in own.items():
        parameter.copy_(state[name])


def merge_lora(module: GPT) -> None:
    """Every LoRALinear becomes a plain nn.Linear again, with the weight W + scale B A, in place; all stays frozen."""
    for name, layer in list(layers(module)):
        replace(module, name, layer.merged().requires_grad_(False))


def layers(module: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Name and layer of each matrix with an adapter."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of that name."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
