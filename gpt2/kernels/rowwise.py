"""numba kernels for training on a processor: what lies between the matrix products, in one pass each.

For float32 and for bfloat16 (formats.py). One thread owns a row, so that the same bits come out run after run, whatever
the threads do.

    N rows (tokens, or heads of sequences)  T tokens  F width  V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from gpt2.kernels.cache import parallel
from gpt2.kernels.formats import fit, widen
from gpt2.kernels.scalars import highest
from gpt2.kernels.scalars import quick_exp as exp

f32 = np.float32
ONE = f32(1.0)
SLICE = 2048  # numbers that one thread takes at a time in passes over whole tensors
GELU_A = f32(2.0 * math.sqrt(2.0 / math.pi))  # gelu_tanh(x) = x sigmoid(A (x + B x^3)), Hendrycks & Gimpel 2016
GELU_B = f32(0.044715)


@parallel
def gelu(x: Any, out: Any) -> None:
    """out = gelu_tanh(x); both (N, F)."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = widen(x[i, j])
            out[i, j] = fit(v / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v))), out)


@parallel
def gelu_backward(x: Any, grad: Any, out: Any) -> None:
    """out = grad * gelu_tanh'(x); all (N, F)."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = widen(x[i, j])
            s = ONE / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v)))
            slope = s + v * s * (ONE - s) * GELU_A * (ONE + f32(3.0) * GELU_B * v * v)
            out[i, j] = fit(widen(grad[i, j]) * slope, out)


@parallel
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


@parallel
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


@parallel
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


@parallel
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


@parallel
def square_sums(values: Any, sums: Any) -> None:
    """sums[b] = sum of squares of the b-th SLICE of values (N,), bfloat16: the same slices whatever the threads do."""
    for b in prange(sums.shape[0]):
        part, total = values[b * SLICE : min((b + 1) * SLICE, values.shape[0])], f32(0.0)
        for i in range(part.shape[0]):
            value = widen(part[i])
            total += value * value
        sums[b] = total


@parallel
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
