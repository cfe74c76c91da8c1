"""The power laws of loss against parameters, tokens and compute (Kaplan et al. 2020; Brown et al. 2020, figure 3.1).

L(x) = floor + scale * x ** -exponent. GPT-3's own line, L = 2.57 C ** -0.048 (C in PF-days), has no floor: over a few
decades a line on log-log paper is all that data of a few sizes can tell from another. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt2.errors import UserError

Array = npt.NDArray[np.float64]
FLOORS = 200  # that are tried, from none to just under the lowest loss


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


def fit(x: Sequence[float], loss: Sequence[float]) -> Law:
    """The law with the floor under which the relative errors are least; two points leave none to be seen."""
    highest = 0.98 * min(loss) if len(x) > 2 else 0.0
    laws = fit_lines(x, loss, np.linspace(0.0, highest, FLOORS if highest else 1))
    return min(laws, key=lambda law: residual(law, x, loss))


def fit_line(x: Sequence[float], loss: Sequence[float]) -> Law:
    """The law without a floor."""
    return fit_lines(x, loss, np.zeros(1))[0]


def fit_lines(x: Sequence[float], loss: Sequence[float], floors: Array) -> list[Law]:
    """Least squares of ln(loss - floor) against ln x, for each floor; UserError where nothing can be fitted."""
    if len(set(x)) < 2 or min(*x, *loss) <= 0 or not np.isfinite([*x, *loss]).all():
        raise UserError("a power law needs two different sizes at least, and losses that are numbers above 0")
    at = np.log(x)
    above = np.log(np.asarray(loss) - floors[:, None])  # (floors, points)
    away = at - at.mean()
    slopes = above @ away / (away @ away)
    levels = above.mean(axis=1) - slopes * at.mean()
    return [Law(*map(float, law)) for law in zip(np.exp(levels), -slopes, floors, strict=True)]


def residual(law: Law, x: Sequence[float], loss: Sequence[float]) -> float:
    """Root mean square of the relative errors."""
    errors = [law(a) / b - 1 for a, b in zip(x, loss, strict=True)]
    return math.sqrt(sum(error * error for error in errors) / len(errors))
