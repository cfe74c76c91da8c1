"""What a LoRA adapter is: its rank, its strength and where it sits. No torch: the processor's runner reads it too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gpt2.errors import UserError, did_you_mean
from gpt2.model.config import GPTConfig

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # the four matrices of a block


class HasShape(Protocol):
    """An array of numpy's or a tensor of torch's."""

    @property
    def shape(self) -> Any: ...


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2021, section 4.1): a frozen W (out, in) acts as W + scale B A.

    `rank` r is the inner width of B A; its strength is alpha / r, or with `rslora` alpha / sqrt(r) (Kalajdzievski
    2023). `dropout` is the share of the inputs of A that training drops. `target_modules` are the ends of the names of
    the matrices that it changes, as PEFT has them: `c_proj` is both of a block's, `mlp.c_proj` one, `h.0.attn.c_attn`
    that of the first block.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    rslora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if self.rank < 1:
            raise UserError(f"rank = {self.rank}: a LoRA adapter has a rank of at least 1")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise UserError(f"alpha = {self.alpha}: the adapter would do nothing; 2 x rank is a usual choice")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout = {self.dropout} of a LoRA adapter: must be at least 0 and below 1")
        if not self.target_modules:
            raise UserError(f"target_modules is empty; choose from {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def targets(self, model: GPTConfig) -> list[str]:
        """Full names of the matrices that it changes: `h.0.attn.c_attn`. UserError for a target that is none."""
        names = [f"h.{layer}.{part}" for layer in range(model.n_layer) for part in TARGETS]
        for target in self.target_modules:
            if not any(ends_with(name, target) for name in names):
                known = [*TARGETS, "c_proj"]
                raise UserError(
                    f"target_modules: {target!r} is no matrix of a block of this model{did_you_mean(target, known)}; "
                    f"choose from {', '.join(TARGETS)}"
                )
        return [name for name in names if any(ends_with(name, target) for target in self.target_modules)]


def ends_with(name: str, target: str) -> bool:
    """Whether a module of this name is meant, as PEFT reads it: the whole name, or its end behind a dot."""
    return name == target or name.endswith(f".{target}")


def tensor_shapes(config: LoRAConfig, model: GPTConfig, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Name -> shape of the adapter's tensors on these matrices: lora_A (r, in), lora_B (out, r)."""
    width, sizes = model.n_embd, {}
    for name in names:
        rows, columns = {
            "attn.c_attn": (3 * model.attention_width, width),
            "attn.c_proj": (width, model.attention_width),
            "mlp.c_fc": (model.n_inner, width),
            "mlp.c_proj": (width, model.n_inner),
        }[name.split(".", 2)[2]]
        sizes[f"{name}.lora_A"] = (config.rank, columns)
        sizes[f"{name}.lora_B"] = (rows, config.rank)
    return sizes


def check_fit(own: Mapping[str, tuple[int, ...]], state: Mapping[str, HasShape]) -> None:
    """UserError for the first tensor of `state` that a model with tensors `own` (name -> shape) has no place for."""
    for name in state:
        if name not in own:
            raise UserError(f"the adapter does not fit this base: it has {name}, where the base has no such matrix")
    for name, shape in own.items():
        if name not in state:
            raise UserError(f"the adapter does not fit this base: {name} is missing from it")
        if tuple(state[name].shape) != tuple(shape):
            raise UserError(
                f"the adapter does not fit this base: {name} is {tuple(state[name].shape)}, the base needs {shape}"
            )
