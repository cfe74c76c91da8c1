"""The operations that have a fused form, each the plain one unless the fused one computes the same here.

Fused: training on a processor in bfloat16, and in float32 where AVX2 is all that it has. numba compiles the kernels on
first use and keeps them on disk.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels import flex
from gpt2.kernels.banded import banded_attention
from gpt2.kernels.blocks import EVALUATED_ROWS, GPU_HEAD_ROWS, NARROW, STORED_ATTENTION
from gpt2.kernels.chosen import by_floats
from gpt2.kernels.chunked import ChunkedHeadLoss, loss_only
from gpt2.kernels.frozen import FrozenLayer, FrozenProduct, Matrix
from gpt2.kernels.patterns import DENSE, Pattern, fold, masked_attention, unfold
from gpt2.runtime import say


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    if fusible(x):
        from gpt2.kernels import fused

        out: Tensor = fused.Gelu.apply(x)  # type: ignore[no-untyped-call]
        return out
    return F.gelu(x, approximate="tanh")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., C) @ weight (F, C)' + bias (F)."""
    if type(weight) is torch.nn.Parameter and min(weight.shape) >= NARROW and fusible(x):
        from gpt2.kernels import fused

        out: Tensor = fused.Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return F.linear(x, weight, bias)


def frozen_linear(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    """`linear` with a matrix that is not trained."""
    if isinstance(weight, Tensor):
        return linear(x, weight, bias)
    out: Tensor = FrozenProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def lora_linear(x: Tensor, layer: FrozenLayer) -> Tensor:
    """x (..., C) @ (weight (F, C) + scale B A)' + bias (F), without its low rank where the layer has none."""
    weight, bias, low = layer
    if low is None:
        return frozen_linear(x, weight, bias)
    if min(weight.shape) >= NARROW and fusible(x):
        from gpt2.kernels import lora

        out: Tensor = lora.Linear.apply(x, layer, low.A, low.B)  # type: ignore[no-untyped-call]
        return out
    narrow = F.linear(x, low.A.to(x.dtype))  # (..., r)
    return torch.add(frozen_linear(x, weight, bias), F.linear(narrow, low.B.to(x.dtype)), alpha=low.scale)


def norm_linear(x: Tensor, norm: torch.nn.LayerNorm, layer: torch.nn.Linear, pieces: int) -> tuple[Tensor, ...]:
    """layer(norm(x)) cut into `pieces` along its last dimension."""
    if fusible(x):
        from gpt2.kernels import parts

        fused: tuple[Tensor, ...] = parts.NormLinear.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias, pieces
        )
        return fused
    return F.linear(plain_norm(x, norm), layer.weight, layer.bias).chunk(pieces, dim=-1)


def norm_lora(x: Tensor, norm: torch.nn.LayerNorm, layer: FrozenLayer, pieces: int) -> tuple[Tensor, ...]:
    """lora_linear(norm(x)) cut into `pieces` along its last dimension; the norm is frozen too."""
    if fusible(x):
        from gpt2.kernels import lora

        frozen_norm = norm.weight, norm.bias, norm.eps
        fused: tuple[Tensor, ...] = lora.NormLinear.apply(  # type: ignore[no-untyped-call]
            x, frozen_norm, layer, pieces, *layer.factors
        )
        return fused
    return lora_linear(plain_norm(x, norm), layer).chunk(pieces, dim=-1)


def norm_mlp_lora(x: Tensor, norm: torch.nn.LayerNorm, up: FrozenLayer, down: FrozenLayer) -> Tensor:
    """`norm_mlp` of a frozen norm and layers, low rank beside one of these or both."""
    if fusible(x):
        from gpt2.kernels import lora

        frozen_norm = norm.weight, norm.bias, norm.eps
        out: Tensor = lora.NormMlp.apply(  # type: ignore[no-untyped-call]
            x, frozen_norm, up, down, *up.factors, *down.factors
        )
        return out
    return lora_linear(gelu(lora_linear(plain_norm(x, norm), up)), down)


def norm_mlp(x: Tensor, norm: torch.nn.LayerNorm, up: torch.nn.Linear, down: torch.nn.Linear) -> Tensor:
    """down(gelu(up(norm(x)))), GELU in its tanh form."""
    if fusible(x):
        from gpt2.kernels import parts

        out: Tensor = parts.NormMlp.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.bias, norm.eps, up.weight, up.bias, down.weight, down.bias
        )
        return out
    high = gelu(F.linear(plain_norm(x, norm), up.weight, up.bias))
    return F.linear(high, down.weight, down.bias)


def plain_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, pattern: Pattern = DENSE) -> Tensor:
    """softmax(q k' / sqrt(D)) v over what each token sees: (B, H, T, D) each."""
    if pattern.stride > 1:
        return _strided_attention(q, k, v, dropout, pattern)
    length, causal = q.size(2), pattern.is_causal(q.size(2))
    if dropout == 0.0 and fusible(q):
        from gpt2.kernels import fused

        if fused.flashes(q):
            return fused.flash_attention(q, k, v, pattern.lows(length))
        if causal and length <= STORED_ATTENTION and q.dtype == torch.bfloat16:
            return fused.causal_attention(q, k, v)
    if causal:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if dropout == 0.0 and flex.usable(q):
        return flex.attention(q, k, v, pattern)
    if dropout == 0.0 and 0 < pattern.window < length:
        return banded_attention(q, k, v, pattern.window, pattern.first)
    return masked_attention(q, k, v, dropout, pattern)


def _strided_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, pattern: Pattern) -> Tensor:
    """Tokens a multiple of the stride apart are a text of their own, and attend without stride."""
    stride, length = pattern.stride, q.size(2)
    q, k, v = (fold(part, stride) for part in (q, k, v))
    return unfold(causal_attention(q, k, v, dropout, pattern.folded(length)), stride, length)


def head_loss(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, vocabulary: int
) -> Tensor:
    """hidden (N, C), head (V, C), bias (V), targets (N) -> sum of cross-entropies in float32.

    Rows of the head from `vocabulary` on are memory's padding and take no part. On a processor neither do tokens whose
    target is ignore_index, as a prompt's are: no logits are made for them.
    """
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        places = wanted_places(targets, ignore_index)
        if places is not None:
            hidden, targets = hidden.index_select(0, places), targets[places]
    if fusible(hidden):
        from gpt2.kernels import fused

        refuse_strangers(targets, ignore_index, vocabulary)
        total: Tensor = fused.HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head, bias, targets, ignore_index, vocabulary
        )
        return total
    on_gpu = hidden.device.type == "cuda"
    if on_gpu and bias is None and torch.is_grad_enabled():
        chunked: Tensor = ChunkedHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head, targets, ignore_index, vocabulary, GPU_HEAD_ROWS
        )
        return chunked
    head, bias = head[:vocabulary], None if bias is None else bias[:vocabulary]
    rows = max(1, hidden.size(0)) if torch.is_grad_enabled() else GPU_HEAD_ROWS if on_gpu else EVALUATED_ROWS
    return loss_only(hidden, head, bias, targets, ignore_index, rows)


def refuse_strangers(targets: Tensor, ignore_index: int, vocabulary: int) -> None:
    """IndexError for a target that is no token: kernels would read and write elsewhere."""
    strange = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
    if strange.any():
        raise IndexError(f"target {int(targets[strange][0])} is out of bounds: the vocabulary has {vocabulary} tokens")


def wanted_places(targets: Tensor, ignore_index: int) -> Tensor | None:
    """Which of the targets (N) count, and as many others as make them an even number above zero, which products like.

    None where that would spare less than a tenth.
    """
    wanted = targets != ignore_index
    places = wanted.nonzero()[:, 0]
    if 10 * len(places) >= 9 * len(targets):
        return None
    more = max(2 - len(places), len(places) % 2)
    return torch.cat((places, (~wanted).nonzero()[:more, 0]))


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Rows of weight (V, C) by ids (...) -> (..., C)."""
    if fusible(weight):
        from gpt2.kernels import fused

        later = getattr(weight, "rows_later", None)
        rows: Tensor = fused.Embedding.apply(weight, ids, later)  # type: ignore[no-untyped-call]
        return rows
    return F.embedding(ids, weight)


def join_gradients(weight: Tensor) -> None:
    """An embedding that is the head too: the two gradients are added without tables in between. Needs the kernels."""
    from gpt2.kernels import fused

    fused.join_gradients(weight)


def fusible(x: Tensor) -> bool:
    """Whether x is part of a training pass on the processor, in a number format that has kernels.

    Not in code that torch.compile reads: it makes kernels of the plain operations.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return have_kernels_for(x.dtype)


def have_kernels_for(dtype: torch.dtype) -> bool:
    """Whether training in it has kernels on this processor, and numba is here."""
    if dtype == torch.bfloat16:
        return have_kernels()
    return dtype == torch.float32 and by_floats() and have_kernels()


@functools.cache
def have_kernels() -> bool:
    """Load the kernels; say so where they are missing, as the plain operations take their place."""
    try:
        import numba

        from gpt2.kernels import rowwise  # noqa: F401
    except Exception as error:  # a numba that does not fit numpy fails in many ways
        say(f"numba cannot be used ({type(error).__name__}: {error}); training goes on without its kernels")
        return False
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:  # both share one pool of OpenMP, and numba has just set it to all cores
        torch.set_num_threads(threads)
    return True
