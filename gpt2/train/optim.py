"""The optimizers over float32 weights: AdamW for all, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gpt2.distributed.shards import layout, part
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.entries import entries
from gpt2.train.muon import Muon

Named = list[tuple[str, nn.Parameter]]

MOMENTUM_START, MOMENTUM_RISE = 0.85, 0.1  # Muon's momentum rises over this share of the run


class Optimizer:
    """Steps all parameters of a model, every rate scaled by one schedule factor."""

    def __init__(self, model: GPT, config: OptimConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config = config
        kinds = sort_parameters(model)
        self.muon: Muon | None = None
        if config.optimizer == "muon":
            self.muon = Muon(kinds.pop("hidden"), config.muon_lr, config.weight_decay, dtype)
        rates = {"embedding": config.embedding_lr, "head": config.head_lr}
        beta1, beta2 = config.betas
        # On a mesh AdamW works on the parts that this process owns: one fused call, whatever meshes they lie on.
        self.named = [pair for named in kinds.values() for pair in named]
        own = {name: own_part(parameter) for name, parameter in self.named}
        self.adamw = torch.optim.AdamW(
            [
                {
                    "params": [own[name] for name, _ in named],
                    "full_lr": rates.get(kind) or config.learning_rate,
                    "weight_decay": 0.0 if kind == "vector" else config.weight_decay,
                }
                for kind, named in kinds.items()
                if named
            ],
            betas=(beta1, beta2),
            eps=config.eps,
            fused=True,
        )
        self.own = list(own.values())
        self.steps = torch.zeros((), device=self.own[0].device)  # AdamW's, one number for all parameters
        for parameter in self.own:  # as its first step would, so that a state can be loaded before it
            self.adamw.state[parameter] = {
                "step": torch.zeros_like(self.steps),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, factor: float, progress: float = 1.0) -> None:
        """One step at `factor` times the full rates, `progress` of the run done, from the parameters' gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = group["full_lr"] * factor
        for (_, parameter), own in zip(self.named, self.own, strict=True):
            if own is not parameter and parameter.grad is not None:
                own.grad = part(parameter.grad)
        counts = [self.adamw.state[own]["step"] for own in self.own]
        torch._foreach_copy_(counts, [self.steps] * len(counts))  # `steps` rules: a state may have been loaded
        self.adamw.step()
        self.steps += 1
        for (_, parameter), own in zip(self.named, self.own, strict=True):
            if own is not parameter:
                own.grad = None  # else a shard's gradient lives on beside the next one
        if self.muon:
            rise = min(1.0, progress / MOMENTUM_RISE)
            full = self.config.muon_momentum
            self.muon.step(factor, full + (1 - rise) * (min(MOMENTUM_START, full) - full))

    def tensors(self) -> dict[str, Tensor]:
        """All that the optimizer remembers, live: `adamw.step`, `adamw.exp_avg.<entry>`, `muon.momentum.<entry>`.

        Entries are those of the parameters (entries.py); copying into these tensors loads a state.
        """
        found = {"adamw.step": self.steps}
        for kind in ("exp_avg", "exp_avg_sq"):
            for (name, parameter), own in zip(self.named, self.own, strict=True):
                average = wrap_like(parameter, self.adamw.state[own][kind])
                found |= {f"adamw.{kind}.{entry}": tensor for entry, tensor in entries(name, average)}
        if self.muon:
            found |= {f"muon.momentum.{entry}": tensor for entry, tensor in self.muon.tensors()}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict()} | ({"muon": self.muon.state_dict()} if self.muon else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.steps.copy_(self.adamw.state[self.own[0]]["step"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])


def own_part(parameter: nn.Parameter) -> nn.Parameter:
    """What AdamW steps: the parameter, or this process's part of a sharded one (in the same memory)."""
    return parameter if layout(parameter) is None else nn.Parameter(part(parameter))


def wrap_like(parameter: Tensor, own: Tensor) -> Tensor:
    """What was made for a parameter's part, as a tensor that is sharded like it."""
    lies = layout(parameter)
    return own if lies is None else lies.wrap(own)


def sort_parameters(model: GPT) -> dict[str, Named]:
    """Every parameter that is trained, by what an optimizer does with it: hidden matrices, embeddings, heads of their
    own, vectors."""
    kinds: dict[str, Named] = {"hidden": [], "embedding": [], "head": [], "vector": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            kinds["vector"].append((name, parameter))
        elif name.startswith("h."):
            kinds["hidden"].append((name, parameter))
        else:
            kinds["embedding" if name.startswith(("wte", "wpe")) else "head"].append((name, parameter))
    return kinds
