"""Channels evened out before quantisation, without data and without changing what the model computes.

Trained GPTs have a few channels that tower over the others behind a LayerNorm, and the next matrix has small columns
there. In whole numbers the others then share a scale that is made for these few: activations are quantised in groups
of 64 as weights are. So both sides of each pair LayerNorm -> matrix meet in the middle: the norm's gain and bias are
divided by m, the matrix's column multiplied by m, channel by channel, with

    m = sqrt(a / w)    a = sqrt(gain^2 + bias^2), the rms of the norm's output    w = the rms of the column

This is SmoothQuant (Xiao et al. 2023, with its strength of 1/2) with `a` read off the norm instead of measured. Pairs
are ln_1 and attn.c_attn, ln_2 and mlp.c_fc, and ln_f and the head where it is untied: a tied one is the embedding too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gpt2.model.config import GPTConfig

Floats = npt.NDArray[np.float32]


class Equalised:
    """Reads a model's tensors by name as `read` does, evened out; each pair's factors are found once and kept."""

    def __init__(self, config: GPTConfig, read: Callable[[str], Floats]) -> None:
        self.config, self.read = config, read
        self.matrix_after = pairs(config)
        self.norm_before = {matrix: norm for norm, matrix in self.matrix_after.items()}
        self.found: dict[str, Floats] = {}

    def __call__(self, name: str) -> Floats:
        norm = name.rpartition(".")[0]
        if name in self.norm_before:
            matrix = self._matrix(name)
            return matrix * self._factors(self.norm_before[name], matrix)
        if norm in self.matrix_after:
            return self.read(name) / self._factors(norm)
        return self.read(name)

    def _factors(self, norm: str, matrix: Floats | None = None) -> Floats:
        if norm not in self.found:
            gain = self.read(f"{norm}.weight")
            bias = self.read(f"{norm}.bias") if self.config.bias else np.zeros_like(gain)
            self.found[norm] = factors(gain, bias, self._matrix(self.matrix_after[norm]) if matrix is None else matrix)
        return self.found[norm]

    def _matrix(self, name: str) -> Floats:
        """Without rows that pad the vocabulary: they would count in the mean."""
        matrix = self.read(name)
        return matrix[: self.config.vocab_size] if name == "lm_head.weight" else matrix


def pairs(config: GPTConfig) -> dict[str, str]:
    """Norm -> the one matrix (its weight) that reads it."""
    found = {} if config.tie_head else {"ln_f": "lm_head.weight"}
    for layer in range(config.n_layer):
        found[f"h.{layer}.ln_1"] = f"h.{layer}.attn.c_attn.weight"
        found[f"h.{layer}.ln_2"] = f"h.{layer}.mlp.c_fc.weight"
    return found


def factors(gain: Floats, bias: Floats, matrix: Floats) -> Floats:
    """m (K) for a norm's gain and bias (K) before a matrix (N, K); 1 where a side is all zeros or not finite.

    Sums are taken in float64, so that m is the same for a matrix that lies transposed in memory.
    """
    squares = np.einsum("nk,nk->k", matrix, matrix, dtype=np.float64)
    with np.errstate(all="ignore"):
        columns = np.sqrt(squares / len(matrix))
        found = np.sqrt(np.hypot(gain, bias, dtype=np.float64) / columns)
    usable = np.isfinite(found) & (found > 0)
    return np.where(usable, found, 1.0).astype(np.float32)
