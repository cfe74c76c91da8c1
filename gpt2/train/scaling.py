"""The power laws of loss against parameters, tokens and compute (Kaplan et al. 2020; Brown et al. 2020, figure 3.1).

L(x) = floor + scale * x ** -exponent. GPT-3's own line, L = 2.57 C ** -0.048 (C in PF-days), has no floor. A few small
sizes cannot tell one: it is taken as published (decision 0013). numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.errors import UserError

PUBLISHED_FLOOR = 1.69  # nats a token that no size and no number of tokens removes (Hoffmann et al. 2022)
PUBLISHED_LENGTH = 4.47  # bytes of such a token: MassiveText's 10.5 TB are 2.35T tokens (Rae et al. 2021)


@dataclass(frozen=True)
class Point:
    """A size that has been trained: all its parameters, those outside the embeddings, tokens, FLOPs, held-out loss."""

    name: str
    parameters: int
    non_embedding: int
    tokens: int
    flops: float
    loss: float  # nats per token


@dataclass(frozen=True)
class Law:
    """L(x) = floor + scale * x ** -exponent."""

    scale: float
    exponent: float
    floor: float = 0.0

    def __call__(self, x: float) -> float:
        return self.floor + self.scale * x**-self.exponent

    def __str__(self) -> str:
        floor = f"{self.floor:.2f} + " if self.floor else ""
        return f"{floor}{self.scale:.4g} x^-{self.exponent:.4f}"


def floor_of(bytes_per_token: float | None) -> float:
    """What text itself leaves uncertain, in nats a token: PUBLISHED_FLOOR, for tokens as long as these."""
    return PUBLISHED_FLOOR * (PUBLISHED_LENGTH if bytes_per_token is None else bytes_per_token) / PUBLISHED_LENGTH


def fit(x: Sequence[float], loss: Sequence[float], floor: float = 0.0) -> Law:
    """Least squares of ln(loss - floor) against ln x. A floor above half of the lowest loss is taken as that half.

    UserError where nothing can be fitted.
    """
    if len(set(x)) < 2 or min(*x, *loss) <= 0 or not np.isfinite([*x, *loss]).all():
        raise UserError("a power law needs two different sizes at least, and losses that are numbers above 0")
    floor = min(floor, min(loss) / 2)
    at, above = np.log(x), np.log(np.asarray(loss) - floor)
    away = at - at.mean()
    slope = float(above @ away / (away @ away))
    return Law(math.exp(above.mean() - slope * at.mean()), -slope, floor)
