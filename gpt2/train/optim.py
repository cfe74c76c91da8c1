"""The optimizers over float32 weights: AdamW for all, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.muon import Muon


class Optimizer:
    """Steps all parameters of a model, every rate scaled by one schedule factor."""

    def __init__(self, model: GPT, config: OptimConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config = config
        hidden, decayed, plain = split_parameters(model)
        self.muon: Muon | None = None
        if config.optimizer == "muon":
            self.muon = Muon(hidden, config.muon_lr, config.muon_momentum, config.weight_decay, dtype)
        else:
            decayed = hidden + decayed
        beta1, beta2 = config.betas
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for _, p in decayed], "weight_decay": config.weight_decay},
                {"params": [p for _, p in plain], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(beta1, beta2),
            eps=config.eps,
            fused=True,
        )

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the full rates, from the gradients that the model's parameters hold."""
        for group in self.adamw.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.adamw.step()
        if self.muon:
            self.muon.step(factor)

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict()} | ({"muon": self.muon.state_dict()} if self.muon else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])


Named = list[tuple[str, nn.Parameter]]


def split_parameters(model: GPT) -> tuple[Named, Named, Named]:
    """(hidden matrices, other matrices, vectors): Muon's, decayed AdamW's, undecayed AdamW's."""
    hidden: Named = []
    decayed: Named = []
    plain: Named = []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            plain.append((name, parameter))
        elif name.startswith("h."):
            hidden.append((name, parameter))
        else:
            decayed.append((name, parameter))
    return hidden, decayed, plain


def clip_gradients(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients so that their global norm is at most `most` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if most > 0 and math.isfinite(most):
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm
