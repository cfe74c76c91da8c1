"""From what each item gives to one figure and its standard error.

Each item gives a few sums; a figure is a function of the sums over all items (a ratio, a perplexity, corpus BLEU, an
F1 of a confusion table), so that one bootstrap over items does for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

DRAWS = 1000  # bootstrap samples
CELLS = 2_000_000  # counts drawn at a time: they bound the memory

Sums = Sequence[float]


def ratio(sums: Sums) -> float:
    """(total, count): a mean, or a total per unit."""
    return sums[0] / sums[1]


def perplexity(sums: Sums) -> float:
    """(nats, units): e to the nats per unit."""
    return math.exp(min(sums[0] / sums[1], 700.0))  # more is no float


def bits(sums: Sums) -> float:
    """(nats, units): bits per unit."""
    return sums[0] / sums[1] / math.log(2)


def macro_f1(sums: Sums) -> float:
    """A confusion table, row by row, gold by guessed: the mean of the classes' F1."""
    size = math.isqrt(len(sums))
    cells = np.asarray(sums).reshape(size, size)
    both = cells.sum(0) + cells.sum(1)
    return float(np.mean(np.divide(2 * cells.diagonal(), both, out=np.zeros(size), where=both > 0)))


def f1(sums: Sums) -> float:
    """(right, guessed, gold) counts: F1 of all decisions together."""
    right, guessed, gold = sums
    return 2 * right / (guessed + gold) if right else 0.0


def bleu(sums: Sums) -> float:
    """What `metrics.bleu_sums` gives, four n-gram counts twice and both lengths, in percent as BLEU is: a share."""
    from sacrebleu.metrics import BLEU

    counts = [round(value) for value in sums]
    return BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score / 100


KINDS: dict[str, Callable[[Sums], float]] = {
    "mean": ratio,
    "perplexity": perplexity,
    "bits": bits,
    "macro_f1": macro_f1,
    "f1": f1,
    "bleu": bleu,
}


@dataclass
class Column:
    """One metric: its kind, and each item's sums. `percent`: shown times 100."""

    kind: str
    rows: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])

    @property
    def value(self) -> float:
        return KINDS[self.kind](np.asarray(self.rows, float).sum(0).tolist())

    @property
    def percent(self) -> bool:
        return self.kind not in ("perplexity", "bits")

    def standard_error(self, seed: int) -> float | None:
        """The standard deviation of the figure over bootstrap samples of the items; None for a single item."""
        if len(self.rows) < 2:
            return None
        values = [KINDS[self.kind](sums) for sums in resampled(np.asarray(self.rows, float), seed).tolist()]
        return float(np.std(values, ddof=1))


def resampled(rows: npt.NDArray[np.float64], seed: int, draws: int = DRAWS) -> npt.NDArray[np.float64]:
    """(draws, columns): sums over as many items as there are, drawn with replacement."""
    dice, count = np.random.default_rng(seed), len(rows)
    at_once = max(1, CELLS // count)
    parts = []
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        parts.append(dice.multinomial(count, np.full(count, 1 / count), size=size) @ rows)
    return np.concatenate(parts)
