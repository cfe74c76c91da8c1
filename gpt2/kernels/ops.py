"""The four operations that have a fused form, each the plain one unless the fused one computes the same here.

Fused: training on a processor in bfloat16. numba compiles the kernels on first use and keeps them on disk.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.runtime import say

LONGEST = 512  # tokens; beyond, T x T probabilities cost more than flash attention saves


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    if fusible(x):
        from gpt2.kernels import fused

        out: Tensor = fused.Gelu.apply(x)  # type: ignore[no-untyped-call]
        return out
    return F.gelu(x, approximate="tanh")


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(D)) v over what is before each token: (B, H, T, D) each."""
    if dropout == 0.0 and q.size(2) <= LONGEST and fusible(q):
        from gpt2.kernels import fused

        return fused.causal_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


def head_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int) -> Tensor:
    """hidden (N, C), head (V, C), targets (N) -> sum of cross-entropies in float32."""
    if fusible(hidden):
        from gpt2.kernels import fused

        total: Tensor = fused.HeadLoss.apply(hidden, head, bias, targets, ignore_index)  # type: ignore[no-untyped-call]
        return total
    logits = F.linear(hidden, head, bias).float()
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Rows of weight (V, C) by ids (...) -> (..., C)."""
    if fusible(weight):
        from gpt2.kernels import fused

        rows: Tensor = fused.Embedding.apply(weight, ids)  # type: ignore[no-untyped-call]
        return rows
    return F.embedding(ids, weight)


def fusible(x: Tensor) -> bool:
    """Whether x is part of a training pass in bfloat16 on the processor, and numba is here."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled() and have_kernels()


@functools.cache
def have_kernels() -> bool:
    """Load the kernels; say so where they are missing, as the plain operations take their place."""
    try:
        import numba

        from gpt2.kernels import bf16  # noqa: F401
    except Exception as error:  # a numba that does not fit numpy fails in many ways
        say(f"numba cannot be used ({type(error).__name__}: {error}); training goes on without its kernels")
        return False
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return True
