"""Passes over whole tensors that a training step ends with, on the kernels of rowwise.py. bfloat16 unless said so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gpt2.kernels import rowwise
from gpt2.kernels.buffers import bits


def square_sum(values: Tensor) -> float:
    """The sum of squares of a contiguous tensor, the same bits whatever the number of threads."""
    flat = bits(values).reshape(-1)
    sums = np.empty(-(-flat.size // rowwise.SLICE), np.float32)
    rowwise.square_sums(flat, sums)
    return float(sums.sum(dtype=np.float64))


def adamw(
    weights: Tensor, short: Tensor, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any],
    step: int, factor: float,
) -> None:  # fmt: skip
    """AdamW's step number `step` (from 1) on float32 `weights`, which are rounded into `short`; torch's own formula.

    state holds `exp_avg` and `exp_avg_sq`, group `lr`, `betas`, `eps` and `weight_decay`: torch.optim.AdamW's names.
    """
    beta1, beta2 = group["betas"]
    averages = (state[name].view(-1).numpy() for name in ("exp_avg", "exp_avg_sq"))
    rowwise.adamw(
        weights.detach().view(-1).numpy(), bits(short).reshape(-1), bits(gradient.contiguous()).reshape(-1), *averages,
        group["lr"], group["lr"] * group["weight_decay"], (beta1, beta2), group["eps"],
        (1.0 - beta1**step, 1.0 - beta2**step), factor,
    )  # fmt: skip
