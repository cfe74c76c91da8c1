"""The optimizers: AdamW, and Muon for the hidden matrices, over float32 weights.

Muon (Jordan et al. 2024) takes a step in an orthogonalised direction. The fused c_attn holds three matrices that
have nothing to do with each other, so q, k and v are handed to it separately, as views of the one parameter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig


class Optimizer:
    """One or two torch optimizers that step together, their rates scaled by one schedule factor."""

    def __init__(self, model: GPT, config: OptimConfig) -> None:
        self.config = config
        hidden, decayed, plain = split_parameters(model)
        self.views = [view for name, p in hidden for view in matrices(name, p)] if config.optimizer == "muon" else []
        if config.optimizer == "adamw":
            decayed = hidden + decayed
        beta1, beta2 = config.betas
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for _, p in decayed], "weight_decay": config.weight_decay},
                    {"params": [p for _, p in plain], "weight_decay": 0.0},
                ],
                lr=config.learning_rate,
                betas=(beta1, beta2),
                eps=config.eps,
                fused=True,
            )
        ]
        if self.views:
            self.parts.append(
                torch.optim.Muon(
                    [view.matrix for view in self.views],
                    lr=config.muon_lr,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                )
            )
        for part in self.parts:
            for group in part.param_groups:
                group["full_lr"] = group["lr"]

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the full rates, from the gradients that the model's parameters hold."""
        for view in self.views:
            view.borrow_gradient()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["full_lr"] * factor
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {f"part{index}": part.state_dict() for index, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, part in enumerate(self.parts):
            part.load_state_dict(state[f"part{index}"])


class MatrixView:
    """Rows [start, stop) of a parameter as a parameter of its own that shares its memory."""

    def __init__(self, parameter: nn.Parameter, start: int, stop: int) -> None:
        self.parameter, self.rows = parameter, slice(start, stop)
        self.matrix = nn.Parameter(parameter.detach()[self.rows])

    def borrow_gradient(self) -> None:
        assert self.parameter.grad is not None
        self.matrix.grad = self.parameter.grad[self.rows]


def matrices(name: str, parameter: nn.Parameter) -> list[MatrixView]:
    """The separate matrices inside a parameter: three in c_attn, one elsewhere."""
    count = 3 if name.endswith("c_attn.weight") else 1
    rows = parameter.size(0) // count
    return [MatrixView(parameter, i * rows, (i + 1) * rows) for i in range(count)]


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
