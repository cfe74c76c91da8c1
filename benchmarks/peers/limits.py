"""What the machine can do at best at this moment: bytes read and operations done a second, with all threads."""

from __future__ import annotations

import statistics
import time

import torch

from gpt2.hardware import gemm_peak
from gpt2.model.config import GPTConfig
from gpt2.model.sizes import forward_flops_per_token

SIZE = 256 * 2**20  # bytes: eight times the largest cache of the machines at hand


class Limits:
    """Measured between the turns of the engines; the process that measures must not be one of theirs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._array = torch.ones(SIZE // 4, dtype=torch.float32)
        self._array.sum()

    def bandwidth(self, reads: int = 12) -> float:
        """Bytes read from memory a second: the median of some 0.1 s of summing a large array."""
        times: list[float] = []
        for _ in range(reads):
            start = time.perf_counter()
            self._array.sum()
            times.append(time.perf_counter() - start)
        return SIZE / statistics.median(times[1:])

    def gemm(self) -> float:
        """FLOP/s of matrix multiplication in bfloat16."""
        return gemm_peak("cpu", "bfloat16")


def prefill_flops(config: GPTConfig, tokens: int) -> float:
    """FLOPs of reading a prompt with logits after its last token only."""
    head_elsewhere = 2 * config.n_embd * config.vocab_size * (tokens - 1)
    return forward_flops_per_token(config, tokens) * tokens - head_elsewhere
