"""Learning rate over a run: warm-up, then cosine or trapezoid, as one factor for every parameter group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpt2.config import setting
from gpt2.errors import UserError
from gpt2.train.ramp import Ramp


@dataclass(frozen=True)
class ScheduleConfig:
    """`trapezoid` holds the full rate and falls linearly over the last part; `cosine` falls all the way.

    All is counted in tokens, so that a batch that grows changes nothing in the shape.
    """

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
        for name in ("warmup_tokens", "decay_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.decay_tokens is not None and self.schedule == "constant":
            raise UserError(f"decay_tokens = {self.decay_tokens}: a constant rate has no decay; leave it out")


def warmup_steps(config: ScheduleConfig, max_steps: int, ramp: Ramp) -> int:
    """How many steps the rate rises for; never the whole run."""
    if config.warmup_tokens is not None:
        steps = ramp.steps_for(config.warmup_tokens)
    else:
        steps = ramp.nearest_step(config.warmup_fraction * ramp.tokens_before(max_steps))
    return min(steps, max_steps - 1)


def rate_factor(config: ScheduleConfig, step: int, max_steps: int, ramp: Ramp) -> float:
    """Share of the full learning rate at `step` (the first is 0, the last max_steps - 1); never quite 0 by warm-up."""
    warmup = ramp.tokens_before(warmup_steps(config, max_steps, ramp))
    before, end = ramp.tokens_before(step), ramp.tokens_before(max_steps)
    if before < warmup:
        mine = ramp.rows_at(step) * ramp.row_tokens
        return (before + mine) / (warmup + mine)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        last = end if config.decay_tokens is None else config.decay_tokens
        done = min(1.0, (before - warmup) / max(1, last - warmup))
        fall = 0.5 * (1 + math.cos(math.pi * done))
    else:
        length = config.decay_fraction if config.decay_tokens is None else config.decay_tokens / end
        fall = min(1.0, (end - before) / end / length) if length else 1.0
    return config.min_lr + (1 - config.min_lr) * fall
