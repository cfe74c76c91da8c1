"""Adapters over packed weights, as kernels/low_rank.py reads them.

K columns of a matrix  N its rows  r rank  Kp, Np padded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpt2.inference.runners.memory import aligned, padded
from gpt2.kernels.lanes import GROUP, LANES
from gpt2.model.lora_config import TARGETS

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter
    from gpt2.checkpoint.packed import PackedModel


def low_rank_rows(model: PackedModel, adapter: Adapter) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """For each layer's four matrices: rank, A (r, Kp) and scale B' (r, Np); rank 0 where the adapter has nothing."""
    adapter.check(model.config)
    names = (f"h.{layer}.{part}" for layer in range(model.config.n_layer) for part in TARGETS)
    return [low_rank_row(model, adapter, name) for name in names]


def low_rank_row(model: PackedModel, adapter: Adapter, name: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Where the norm before the matrix was evened out for quantisation, A takes its output as it is now."""
    matrix, low = model.matrices[f"{name}.weight"], adapter.state.get(f"{name}.lora_A", np.zeros((0, 0), np.float32))
    a = aligned((len(low), padded(matrix.columns, GROUP)), np.float32)
    b = aligned((len(low), padded(matrix.rows, LANES)), np.float32)
    if len(low):
        norm = name.replace("attn.c_attn", "ln_1").replace("mlp.c_fc", "ln_2")
        a[:, : matrix.columns] = low * model.factors.get(norm, np.float32(1.0))
        b[:, : matrix.rows] = adapter.state[f"{name}.lora_B"].T * np.float32(adapter.config.scale)
    return len(low), a, b
