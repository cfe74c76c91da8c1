"""numba kernels for training on a processor: what lies between the matrix products, in one pass each.

For float32 and for bfloat16, which numba does not have: a kernel sees its bytes as uint16, and computes in float32
either way. One thread owns a row, so that the same bits come out run after run, whatever the threads do.

    N rows (tokens, or heads of sequences)  T tokens  F width  V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

f32 = np.float32
I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()

OPTIONS: dict[str, Any] = {
    "parallel": True,
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    # Sums may be reordered and products fused; infinities and NaN keep their meaning: a run that diverges shows it.
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
ONE = f32(1.0)
SLICE = 2048  # numbers that one thread takes at a time in passes over whole tensors
GELU_A = f32(2.0 * math.sqrt(2.0 / math.pi))  # gelu_tanh(x) = x sigmoid(A (x + B x^3)), Hendrycks & Gimpel 2016
GELU_B = f32(0.044715)


@intrinsic
def _as_float(typingctx: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda ctx, b, sig, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _as_bits(typingctx: Any, value: Any) -> Any:
    return types.uint32(types.float32), lambda ctx, b, sig, args: b.bitcast(args[0], ir.IntType(32))


@njit(inline="always")
def narrow(value: Any) -> Any:
    """float32 -> bfloat16 bits, as `fit` has them."""
    bits = _as_bits(f32(value))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@intrinsic
def widen(typingctx: Any, number: Any) -> Any:
    """A stored number as float32, exact: float32 as it is, or bfloat16's bits."""
    if number == types.float32:
        return number(number), lambda context, builder, signature, args: args[0]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), I32(16)), F32)

    return types.float32(types.uint16), code


@intrinsic
def fit(typingctx: Any, value: Any, row: Any) -> Any:
    """A float32 as it is stored in `row`, an array: as it is, or as bfloat16's bits, ties to even.

    NaNs of arithmetic are quiet ones and stay NaN.
    """
    if row.dtype == types.float32:
        return types.float32(types.float32, row), lambda context, builder, signature, args: args[0]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], I32)
        tie = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        return builder.trunc(builder.lshr(builder.add(bits, builder.add(tie, I32(0x7FFF))), I32(16)), I16)

    return types.uint16(types.float32, row), code


@intrinsic
def rank(typingctx: Any, number: Any) -> Any:
    """A stored number's bits as a whole number of the same order: a maximum of these becomes vectors."""
    whole = types.int32 if number == types.float32 else types.int16

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _flipped(builder, builder.bitcast(args[0], I32) if number == types.float32 else args[0])

    return whole(number), code


@intrinsic
def of_rank(typingctx: Any, whole: Any) -> Any:
    """The float32 of a `rank`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _flipped(builder, args[0])
        if whole == types.int16:
            bits = builder.shl(builder.zext(bits, I32), I32(16))
        return builder.bitcast(bits, F32)

    return types.float32(whole), code


def _flipped(builder: Any, bits: Any) -> Any:
    """Below zero a float's size grows as its bits do: all but the sign turn round. Its own inverse."""
    kind = bits.type
    sign = builder.ashr(bits, kind(kind.width - 1))
    return builder.xor(bits, builder.and_(sign, kind(2 ** (kind.width - 1) - 1)))


@njit(inline="always")
def highest(row: Any, count: Any) -> Any:
    """The maximum of row[:count], count at least 1."""
    top = rank(row[0])
    for j in range(1, count):
        top = max(top, rank(row[j]))
    return of_rank(top)


@njit(inline="always")
def exp(x: Any) -> Any:
    """exp to about 2e-6 relative: a power of two times a polynomial, plain arithmetic that LLVM turns into vectors.

    The argument is cut to [-87, 88]; NaN stays NaN.
    """
    z = min(max(x, f32(-87.0)), f32(88.0)) * f32(1.4426950408889634)
    n = np.floor(z + f32(0.5))
    r = z - n
    p = f32(1.5403530e-4)
    p = p * r + f32(1.3333558e-3)
    p = p * r + f32(9.6181291e-3)
    p = p * r + f32(5.5504109e-2)
    p = p * r + f32(2.4022651e-1)
    p = p * r + f32(6.9314718e-1)
    p = p * r + f32(1.0)
    return p * _as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(**OPTIONS)
def gelu(x: Any, out: Any) -> None:
    """out = gelu_tanh(x); both (N, F)."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = widen(x[i, j])
            out[i, j] = fit(v / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v))), out)


@njit(**OPTIONS)
def gelu_backward(x: Any, grad: Any, out: Any) -> None:
    """out = grad * gelu_tanh'(x); all (N, F)."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = widen(x[i, j])
            s = ONE / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v)))
            slope = s + v * s * (ONE - s) * GELU_A * (ONE + f32(3.0) * GELU_B * v * v)
            out[i, j] = fit(widen(grad[i, j]) * slope, out)


@njit(**OPTIONS)
def causal_softmax(scores: Any, scale: Any) -> None:
    """scores (N, T, T) -> probabilities, in place: row t is softmax(scale * scores[t, :t + 1]), then zeros."""
    length = scores.shape[1]
    for n in prange(scores.shape[0]):
        weights = np.empty(length, f32)
        for t in range(length):
            row = scores[n, t]
            top = widen(row[0])
            for j in range(1, t + 1):
                top = max(top, widen(row[j]))
            total = f32(0.0)
            for j in range(t + 1):
                weight = exp((widen(row[j]) - top) * scale)
                weights[j] = weight
                total += weight
            inverse = ONE / total
            for j in range(t + 1):
                row[j] = fit(weights[j] * inverse, row)
            row[t + 1 :] = 0


@njit(**OPTIONS)
def causal_softmax_backward(probabilities: Any, grad: Any, scale: Any) -> None:
    """grad by the probabilities -> grad by the scores, in place; both (N, T, T)."""
    length = probabilities.shape[1]
    for n in prange(probabilities.shape[0]):
        for t in range(length):
            p, g = probabilities[n, t], grad[n, t]
            dot = f32(0.0)
            for j in range(t + 1):
                dot += widen(p[j]) * widen(g[j])
            for j in range(t + 1):
                g[j] = fit(widen(p[j]) * (widen(g[j]) - dot) * scale, g)
            g[t + 1 :] = 0


@njit(**OPTIONS)
def cross_entropy(logits: Any, vocabulary: Any, targets: Any, losses: Any, ignore_index: Any) -> None:
    """logits (N, V) -> gradient of the summed loss, in place; losses (N,) float32. An ignored row gives zeros.

    Columns from `vocabulary` on are memory's padding: no part of the sums, and without gradient.
    """
    for i in prange(logits.shape[0]):
        row, target = logits[i], targets[i]
        if target == ignore_index:
            losses[i] = f32(0.0)
            row[:] = 0
            continue
        top = highest(row, vocabulary)
        total = f32(0.0)
        for j in range(vocabulary):
            total += exp(widen(row[j]) - top)
        wanted = widen(row[target])
        losses[i] = f32(math.log(total)) + top - wanted
        inverse = ONE / total
        for j in range(vocabulary):
            row[j] = fit(exp(widen(row[j]) - top) * inverse, row)
        row[target] = fit(exp(wanted - top) * inverse - ONE, row)
        row[vocabulary:] = 0


@njit(**OPTIONS)
def sum_rows(order: Any, starts: Any, grad: Any, out: Any) -> None:
    """out[u] = sum of grad (N, C) over the places order[starts[u] : starts[u + 1]], in float32."""
    for u in prange(starts.shape[0] - 1):
        total = np.zeros(grad.shape[1], f32)
        for place in order[starts[u] : starts[u + 1]]:
            for j in range(grad.shape[1]):
                total[j] += widen(grad[place, j])
        row = out[u]
        for j in range(grad.shape[1]):
            row[j] = fit(total[j], row)


@njit(**OPTIONS)
def square_sums(values: Any, sums: Any) -> None:
    """sums[b] = sum of squares of the b-th SLICE of values (N,), bfloat16: the same slices whatever the threads do."""
    for b in prange(sums.shape[0]):
        part, total = values[b * SLICE : min((b + 1) * SLICE, values.shape[0])], f32(0.0)
        for i in range(part.shape[0]):
            value = widen(part[i])
            total += value * value
        sums[b] = total


@njit(**OPTIONS)
def adamw(
    weights: Any, short: Any, grad: Any, mean: Any, square: Any, rate: Any, decay: Any, betas: Any, eps: Any,
    corrections: Any, factor: Any,
) -> None:  # fmt: skip
    """One step of AdamW (Loshchilov & Hutter 2019) in one pass: all (N,), grad and short bfloat16, the rest float32.

    grad counts `factor` times; weights shrink by `decay`; `corrections` are 1 - beta^step of both averages. short gets
    the new weights, rounded.
    """
    beta1, beta2 = f32(betas[0]), f32(betas[1])
    size, root = f32(rate / corrections[0]), f32(1.0 / math.sqrt(corrections[1]))
    keep, eps, factor = f32(1.0 - decay), f32(eps), f32(factor)
    for b in prange((weights.shape[0] + SLICE - 1) // SLICE):
        part = slice(b * SLICE, min((b + 1) * SLICE, weights.shape[0]))
        w, h, g, m, s = weights[part], short[part], grad[part], mean[part], square[part]
        # A loop for each result, in the first cache: one over five arrays would not become vectors, as LLVM compares
        # all of their addresses first and gives up.
        for i in range(w.shape[0]):
            m[i] += (widen(g[i]) * factor - m[i]) * (ONE - beta1)
        for i in range(w.shape[0]):
            value = widen(g[i]) * factor
            s[i] = s[i] * beta2 + value * value * (ONE - beta2)
        for i in range(w.shape[0]):
            w[i] = w[i] * keep - size * m[i] / (np.sqrt(s[i]) * root + eps)
        for i in range(w.shape[0]):
            h[i] = fit(w[i], h)
