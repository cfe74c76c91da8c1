"""Learning rate over a run: warm-up, then cosine or trapezoid, as one factor for every parameter group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpt2.config import setting
from gpt2.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """`trapezoid` holds the full rate and falls linearly over the last part; `cosine` falls all the way."""

    schedule: Literal["trapezoid", "cosine", "constant"] = setting("trapezoid", "shape of the learning rate")
    warmup_tokens: int | None = setting(None, "length of the warm-up; else warmup_fraction")
    warmup_fraction: float = setting(0.02, "share of the run that is warm-up")
    decay_fraction: float = setting(0.5, "trapezoid: the last part of the run, over which the rate falls")
    decay_tokens: int | None = setting(None, "cosine: where it ends, then min_lr; trapezoid: length of the fall")
    min_lr: float = setting(0.0, "the rate at the end, as a share of the full one")

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "decay_fraction", "min_lr"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} = {getattr(self, name)}: must be between 0 and 1")
        if self.decay_tokens is not None:
            raise UserError(f"decay_tokens = {self.decay_tokens}: not built yet; leave it out")


def warmup_steps(config: ScheduleConfig, max_steps: int, batch_tokens: int) -> int:
    """How many steps the rate rises for; never the whole run."""
    if config.warmup_tokens is not None:
        steps = math.ceil(config.warmup_tokens / batch_tokens)
    else:
        steps = round(config.warmup_fraction * max_steps)
    return min(steps, max_steps - 1)


def rate_factor(config: ScheduleConfig, step: int, max_steps: int, batch_tokens: int) -> float:
    """Share of the full learning rate at `step` (the first is 0, the last max_steps - 1); never quite 0 by warm-up."""
    warmup = warmup_steps(config, max_steps, batch_tokens)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, max_steps - warmup)  # in [0, 1)
    if config.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * done))
    else:
        left = (max_steps - step) / max_steps
        fall = min(1.0, left / config.decay_fraction) if config.decay_fraction else 1.0
    return config.min_lr + (1 - config.min_lr) * fall
